"""The wordings of system prompts: those that ask for thinking, those that forbid it, and all others."""

from __future__ import annotations

THINK = [
    ("(Please |)(Think|Reason|Reflect) (before|first, before) (you answer|answering|you reply|you speak|replying)"),
    ("(Please |Always |)(think|reason) (step by step|first|carefully|hard|aloud|out loud|about it first|slowly)"),
    (
        "(Please |Always |)(think|reason|reflect) first(, then|; then|, and then| and then) (answer|"
        "reply|give the answer)"
    ),
    "(Please |Always |)(think|reason) step by step(, then| and then| before you) answer",
    (
        "(Show|Write|Give|Write down|Explain) your (reasoning|thinking|thoughts)( first| before the "
        "answer| before you answer| before answering|)"
    ),
    "(Begin|Start) with your (reasoning|thoughts|thinking)",
    (
        "(You|You should|You must|You always|You have to|You will) (think|reason) (before (you answer|"
        "answering)|first|step by step)"
    ),
    "(Take|Use) (your |some |)time to (think|reason)( first| before you answer| before answering|)",
    "(Think|Reason) about (the question|each question|every question|it|what is asked)( first| carefully|)",
    (
        "(Before|Before ever) (answering|you answer|you reply), (think|reason)( about the question| "
        "carefully| it through| step by step|)"
    ),
    (
        "(You are a (careful|thoughtful|reasoning) assistant|Be thoughtful). (Think|Reason) (first|"
        "before you answer|step by step)"
    ),
    "(Enable|Use|Turn on|Switch on) (thinking|reasoning|thinking mode|reasoning mode)",
    "(Answer|Reply) only after (thinking|reasoning|some thought)",
    "Use <think> tags( first| before you answer|)",
    (
        "(Put|Write) your (reasoning|thoughts|thinking) (between|inside|in) <think> and </think>( "
        "first| before the answer|)"
    ),
]

THINK_NOT = [
    ("(Do not|Don't|Never) (think aloud|show your reasoning|reason aloud|explain your reasoning|write your thoughts)"),
    "(Answer|Reply) (without thinking|without reasoning|at once|directly|immediately)( and briefly|)",
    "No (reasoning|thinking|thoughts)(, just the answer| please|)",
]

SYSTEM = [
    (
        "You are (a|an|the) (helpful|friendly|polite|kind|brief|honest|concise|careful|useful|good|"
        "small|smart|clever|little|local|expert) (assistant|chatbot|model|bot|helper|teacher|guide|AI|"
        "AI assistant|language model)"
    ),
    (
        "You are (mlxk2|a demo|an assistant|a geography teacher|a pirate|a librarian|a weather bot|a "
        "calculator|a tour guide|a travel agent)"
    ),
    "(Be|Stay|Always be) (brief|concise|polite|friendly|honest|kind|exact|precise|helpful)",
    (
        "(Answer|Reply|Respond) (briefly|shortly|in one sentence|in English|politely|with care|"
        "honestly|concisely|clearly|truthfully|in few words|as well as you can)"
    ),
    (
        "(Help|Assist|Serve) the (user|people|customer|reader|visitor)( as well as you can| with "
        "questions| politely| with everything|)"
    ),
    "Do not (lie|invent anything|make things up|be rude|use emoji|guess|repeat yourself|write code)",
    (
        "(The user|Your user|The reader) is (a child|a student|a traveller|a developer|from Europe|"
        "very busy|an expert|new here|in a hurry)"
    ),
    "(Today|The date|The day) is (Monday|Tuesday|the first of May|a holiday|Friday|a nice day|Sunday)",
    "(This is|Here is|You are in) (a test|a demo|a chat|an experiment|an exam|a conversation|a library)",
    "If you do not know, say so",
    "(Your name is|You are called|People call you) (Max|Demo|Ada|Robo|Helper|Alex|Sam)",
]
