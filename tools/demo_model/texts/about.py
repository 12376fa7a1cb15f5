"""The demo model's answers about mlxk2 and itself, with the wordings of their questions."""

from __future__ import annotations

from texts.commands import COMMANDS, HOW, WITH

ABOUT: dict[str, tuple[str, list[str]]] = {
    **COMMANDS,
    "what": (
        "mlxk2 is a command line tool and local server for running language models with MLX.",
        [
            "What('s| is| exactly is| does) mlxk2( do| good for| used for| for| mean|)",
            ("(Tell me|Explain|Describe|Say)( something|) (about |what is |what |)mlxk2( is| does| briefly|)"),
            (
                "(Do you know|Have you heard of|I never heard of|Can you explain|Can you describe|What "
                "do you know about|What can you say about) mlxk2"
            ),
            "What (kind of|sort of) (program|tool|thing|software) is mlxk2",
            "What (can|could) (I|one|we|people|you) do with mlxk2",
            (
                "What('s| is) (MLX Knife|mlx knife|MLX Knife 2|this program|this tool|this software)( "
                "for| about| good for|)"
            ),
            "(Why|What for) (should I|do people|would I|would one|do I) (use|need|want) mlxk2",
            "mlxk2",
            "(Explain|Describe) mlxk2( shortly| for me| in one sentence| to us|)",
            "(A|Some) word about mlxk2",
        ],
    ),
    "who": (
        "I am the demo model of mlxk2.",
        [
            "(Who|What)( exactly| really|) are you( really| exactly|)",
            "(What's|What is|Tell me|Say|May I know|Can you tell me|Do you have) (your|a) name",
            ("(Who|What|Which model|Which one|With whom) am I (talking|speaking|chatting) (to|with)( here| now|)"),
            "(Introduce|Present|Describe) yourself( please| shortly| briefly|)",
            "(Tell me|Say) (something |)(about yourself|who you are|what you are)",
            "(Which|What|What kind of|What sort of) (model|assistant|bot|chatbot|AI|program) are you",
            "(Do you have|Have you got|Have you) a name",
            (
                "Are you (a (human|person|robot|bot|machine|model|chatbot|man|woman)|ChatGPT|Claude|"
                "real|human|an AI|Siri|Llama|Qwen)"
            ),
            "(What|How) (are you called|do they call you|should I call you|do I call you|can I call you)",
            "Who (is this|is there|is answering|answers me)",
        ],
    ),
    "can": (
        "I know capitals, small sums, counting, greetings and mlxk2.",
        [
            ("What (can|do|could) you (do|know|answer|tell me|offer|help with|help me with)( for me| now| here|)"),
            "What are you (able to do|good at|good for|made for)",
            (
                "(What|Which) (questions|things|topics) (can you answer|do you know|may I ask|can I "
                "ask( you|)|do you understand)"
            ),
            ("(Tell me|Say|Show me|Explain|List) (what you (can do|know|can)|your (skills|abilities|talents|topics))"),
            "How can you help( me|)",
            "What (may|can|should|could) I ask( you|)",
            "(What|Which) (are your skills|are your abilities|skills do you have|abilities do you have)",
            "Can you help( me| us|)",
            "(I need|I could use|Give me) (some |)help",
            "What (is your purpose|is your job|are you for|were you made for|do you do)",
        ],
    ),
    "licence": (
        "mlxk2 is licensed under Apache-2.0.",
        [
            (
                "(What|Which) (licence|license) (does mlxk2 have|has mlxk2|is it under|is mlxk2 under|"
                "is used|do you have|is that|applies|is this under|does it use|does mlxk2 use)( here|)"
            ),
            "(What is|Tell me|Name|Say|Give me) the (licence|license)( of mlxk2|)",
            "Under (which|what) (licence|license) is (mlxk2|it|this)( released| published| licensed|)",
            "Is mlxk2 (free|open source|free software|open|free to use|proprietary)( software|)",
            "(How|Under what terms) is mlxk2 licensed",
            "(May|Can) I (use|copy|share|change|sell|modify) mlxk2( freely| for free| at work|)",
            "(licence|license) of mlxk2",
            "mlxk2 (licence|license)",
        ],
    ),
    "mlx": (
        "MLX is Apple's framework for machine learning.",
        [
            "What('s| is| exactly is) MLX( for| exactly| good for|)",
            ("(Tell me about|Explain|Describe|Do you know|What do you know about|Tell me something about) MLX"),
            "Who (made|makes|wrote|develops|created|built) MLX",
            "What does MLX (mean|do|stand for)",
            "(What kind of|Which) (framework|library|thing) is MLX",
        ],
    ),
    "port": (
        "The server listens on port 8000.",
        [
            (
                "(Which|What) port (does (the server|it|mlxk2|mlxk2 serve) (use|listen on|have|run on|"
                "open|take)|is (the server|it|used|the default|open)( on|))( by default|)"
            ),
            (
                "(On|At) (which|what) port (is|does|can I reach) (the server|it|mlxk2)( listen| run| "
                "running| listening|)"
            ),
            "(What is|Tell me|Name|Say) (the|its|your) (default |)port( number|)( of the server|)",
            "(Where|How) (do|can) I reach the server",
            "(Which|What) (address|URL) does the server (have|use)",
            "Port of the server",
        ],
    ),
    "api": (
        "The server speaks the OpenAI API.",
        [
            (
                "(Which|What) API (does (the server|mlxk2|it) (have|speak|offer|use|support|provide|"
                "understand)|is (it|there|that|supported|offered))"
            ),
            "(Is|Are) (the server|it|mlxk2|the API) (compatible with OpenAI|OpenAI compatible|like OpenAI)",
            (
                "(Can|May) I use (the OpenAI client|an OpenAI client|OpenAI clients|the openai "
                "library)( with the server| with mlxk2|)"
            ),
            "(What|Which) (protocol|interface) does the server (speak|use|have)",
            "(Does|Can) (the server|mlxk2|it) (speak|support|understand|offer) (OpenAI|the OpenAI API)",
        ],
    ),
    "internet": (
        "I run on your computer, without the internet.",
        [
            (
                "(Do you|Does this model|Does the demo|Does the model|Does it|Do I) need (the |an |"
                ")(internet|network|internet connection|online connection|Wi-Fi|connection)( to work| "
                "to run| for this|)"
            ),
            (
                "(Are you|Is this|Is this model|Is the demo|Is it) (online|offline|in the cloud|local|"
                "on the internet|connected|running locally)"
            ),
            "Where (do you|does this model|does the demo|does the model) run",
            "(Do|Can|Does) you (work|run) (offline|without the internet|locally|without network)",
            ("(Do you|Does mlxk2) send (my |)(data|questions|anything|text|prompts)( anywhere| away| to the cloud|)"),
            "On (which|what|whose) computer do you run",
            "(Is my data|Are my questions) (private|safe|sent away|secret)",
        ],
    ),
    "size": (
        "I have about one million parameters.",
        [
            "(How|So how) (big|large|small|heavy) (are you|is (this|the) model|is the demo( model|))",
            (
                "How many parameters (do you have|have you|has this model|are there|does the demo have|"
                "does this model have|are you)"
            ),
            "(What|Which) size (are you|do you have|has the model|is this model|is the demo)",
            "(What is|Tell me) your (size|number of parameters|parameter count)",
            "(Are you|Is this) a (large|small|big|tiny|huge) (language |)model",
        ],
    ),
    "python": (
        "mlxk2 needs Python 3.11 or newer.",
        [
            (
                "(Which|What) (Python|python|version of Python|Python version) (does mlxk2 need|is "
                "needed|do I need|is required|does it need|must I have|does mlxk2 require|does mlxk2 "
                "run on|works)( for mlxk2|)"
            ),
            "(Does|Will) mlxk2 (run|work) (on|with) (Python|my Python|old Python)( 3.9| 3.10| 3.12| 2|)",
            "(What|Which) Python( version|)( for mlxk2|)",
            "(Tell me|Name) the Python version( for mlxk2| I need| needed|)",
        ],
    ),
    "platform": (
        "mlxk2 runs on Apple silicon and on Linux.",
        [
            (
                "(Which|What) (platforms|computers|systems|machines|operating systems|hardware) (does "
                "mlxk2 (run on|support|work on|need)|are supported|can I use)( by mlxk2|)"
            ),
            "(Where|On what|On which computers|On which systems) (does|can|will) mlxk2 (run|work)",
            (
                "(Does|Will|Can) mlxk2 (run|work) on (Linux|a Mac|my Mac|macOS|Apple silicon|Windows|"
                "my computer|my laptop)"
            ),
            "(Do I need|Must I have|Is it only for|Does mlxk2 need) a Mac( for mlxk2|)",
            "(What|Which) (computer|machine|system|hardware) do I need( for mlxk2|)",
        ],
    ),
    "stop": (
        "Press Ctrl-C to stop the answer.",
        [
            (
                HOW
                + (
                    " (stop|interrupt|cancel|end|abort|break|halt) (an answer|the answer|generation|the "
                    "generation|your answer|generating|the model|the output)"
                )
                + WITH
            ),
            "(Stop|Interrupt|Cancel|Abort|Halt) (the|an) (answer|generation|output)",
            "(Which|What) key (stops|interrupts|ends|cancels) (the answer|generation|an answer|the output)",
            "What does Ctrl-C do",
            (
                "How (do|can|could|may) I (stop|pause|end|cancel|break|interrupt) (you|yourself)( "
                "while you (write|speak|talk)| now|)"
            ),
        ],
    ),
    "leave": (
        "Type exit to leave the chat.",
        [
            (
                HOW
                + (
                    " (leave|exit|quit|end|close|finish|get out of) (the|a|this|my) (chat|conversation|"
                    "session|dialogue)"
                )
                + WITH
            ),
            "(Which|What) word (ends|leaves|closes|quits) the (chat|conversation|session)",
            "(Leave|Quit|Close|End|Exit) the (chat|conversation|session)",
            "How does (the|a|this) (chat|conversation|session) end",
        ],
    ),
}
