"""The wordings of the questions the demo model is trained on, but those about mlxk2 itself."""

from __future__ import annotations

_ASK = (
    "(Do you (happen to |)know|Can you tell me|Could you tell me|Would you tell me|Tell me|I want to know|"
    "I would like to know|I'd like to know|I wonder|I need to know|I am wondering|Say|Please say|Explain|"
    "Can you say|Could you say|Will you tell me|I forgot|Please tell me|I ask myself|Let me know|"
    "You surely know|Have you any idea|Any idea)"
)

CAPITAL = [
    "(What|Which city)('s| is) the capital( city|) of {c}",
    "(What|Which) (city|place|town) is the capital( city|) of {c}",
    "(Tell|Give|Show|Send) me the capital( city|) (of|for) {c}",
    "(Name|State|Say|Find|Write|Write down|Look up|Guess|List) the capital( city|) of {c}",
    "(Can|Could|Will|Would) you (please |)(name|tell me|say|find) the capital( city|) of {c}",
    _ASK + " (what|which city) the capital( city|) of {c} is",
    _ASK + " (what|which city) is the capital( city|) of {c}",
    _ASK + " the capital( city|) of {c}",
    _ASK + " {c}'s capital",
    "(What|Which city)('s| is) {c}'s capital( city|)",
    "{c}'s capital( city|)( is|)",
    "capital( city|) (of|for|in) {c}",
    "{c} capital( city|)",
    "{c}, capital",
    "The capital( city|) of {c}( is|)",
    "{c}: (what|which city) is (its|the) capital( city|)",
    "(What|Which) (city|town|place) (serves|acts|works) as (the |)capital of {c}",
    "What is the name of (the capital of {c}|{c}'s capital)",
    "What is the capital( city|) (called|named) in {c}",
    "(What|How) do (you|people|they|we) call the capital of {c}",
    "How is the capital( city|) of {c} (called|named)",
    "(Help me with|I need|I am looking for|I search|I look for|Looking for|Need) the capital( city|) of {c}",
    "If I (go|travel|fly|move) to {c}, what is (its|the) capital",
    "(Complete|Finish|Continue)( the sentence| this|): The capital of {c} is",
    "(In|For|Of) {c}, (what|which city) is the capital",
    "(What|Which) capital (does {c} have|has {c}|belongs to {c}|is the one of {c})",
    "Where is the capital of {c}",
    "(We are|My friend is|I am|I live|We live) in {c}. What is the capital( city|)( there| here| of it|)",
    "(Geography|School|Test|Exam|A question of geography): (the |)capital of {c}",
    "(Does|Has) {c} (have |)a capital? Which( one|)",
    "Which (is|city is) the (main city and |official |present |)capital of {c}",
    "(What|Which city) (would you say |do you think |)is the capital of {c}",
    "The country is {c}. (What|Which city) is (its|the) capital",
    "(My teacher|My son|My daughter|Somebody|A friend) (asks|asked|wants to know) the capital of {c}",
]

FOLLOW_UP = [
    "And (of|for|in|from|) {c}",
    "and {c}",
    "(What|How) about {c}",
    "(And|So|Then) what about {c}",
    "And the one (of|for) {c}",
    "And that of {c}",
    "(Then|Next|Now|Also|But|Or) (of |for |) {c}",
    "Next: {c}",
    "{c}",
    "{c}, then",
    "{c} too",
    "(Same question|The same|Same thing|Same again|The same question) for {c}",
    "(What|Which) is it (for|in|of) {c}",
    "(And|Now|Then|Next) (what is the capital|the capital|its capital|that|this) (of|for) {c}",
    "(OK|Okay|Good|Great|Thanks|Nice|Right|Fine|Well|Thank you|Cool|Yes|Perfect), (and|now|then|what about|next) {c}",
    "(OK|Good|Great|Thanks|Nice|Fine|Thank you), (and|now) (of|for|in) {c}",
    "(Tell me|Give me|I want|I need|And I need) (the one|that|the same|it) (of|for) {c}",
    "(Do you know|Can you tell me|Could you tell me) (that|it|the one) (of|for) {c}( too| as well|)",
    "(Take|Try|Do) {c}( next| now| then|)",
    "And if I say {c}",
    "(I also need|Also) (the one of |) {c}",
    "{c} (next|now|please|also)",
    "How is it (with|for|in) {c}",
    "What (is|would be) that (for|of) {c}",
]

COUNTRY = [
    "(Which|What) country has the capital {p}",
    "(Which|What) country('s capital is {p}| has {p} as (its |)capital)",
    "{p} is the capital of (which|what) country",
    "{p} is the capital of (what|where)",
    "(Of|For) which country is {p} the capital",
    "Which country is {p} the capital of",
    "Whose capital is {p}",
    "(Tell me|Name|Say|Do you know|Give me) the country (whose capital is|with the capital) {p}",
]

SUM = [
    "(What|How much)('s| is) {a} (+|plus) {b}",
    "(What|How much) (is|are|makes|make|do|gives) {a} and {b}( together| in total| added|)",
    "{a} (+|plus) {b}( =| equals| is| makes|)",
    "{a}+{b}(=|)",
    "(Calculate|Compute|Solve|Evaluate|Work out|Find|Add up|Do|Try) {a} (+|plus) {b}",
    "(Calculate|Compute|Find|Give me|Tell me|What is|Work out) the sum of {a} and {b}",
    "(Add|Sum|Add up|Add together|Sum up) {a} and {b}",
    "(Can|Could|Will) you (please |)(add|sum up|add up) {a} and {b}",
    "Add {b} to {a}",
    _ASK + " (what|how much) {a} (+|plus|and) {b} (is|makes)",
    _ASK + " (what|how much) is {a} (+|plus) {b}",
    _ASK + " the sum of {a} and {b}",
    "What (do|does|will) (you|I|we) get (when|if) (you|I|we) add {a} (and|to) {b}",
    "What do {a} and {b} (make|add up to|give|sum to)",
    "(If I have|I have|I had|With) {a} (apples|books|coins|eggs|cats|) and (get|buy|find|add) {b} (more|), how many (do I have|is that|are there)",
    "The (sum|total) of {a} and {b}( is|)",
    "(Result|Answer|Value|Total) of {a} (+|plus) {b}",
    "{a} (+|plus) {b} is (what|how much)",
    "(Maths|Math|Sum|Exercise|Arithmetic): {a} (+|plus) {b}",
    "Sum of {a} and {b}",
    "How many are {a} (+|plus|and) {b}",
    "(My teacher|My son|A friend) asks (what|how much) {a} (+|plus) {b} is",
]

DIFFERENCE = [
    "(What|How much)('s| is) {a} (-|minus) {b}",
    "(What|How much) is {a} (less|take away|without) {b}",
    "{a} (-|minus) {b}( =| equals| is| makes|)",
    "{a}-{b}(=|)",
    "(Calculate|Compute|Solve|Evaluate|Work out|Find|Do|Try) {a} (-|minus) {b}",
    "(Calculate|Compute|Find|Give me|Tell me|What is|Work out) the difference (between|of) {a} and {b}",
    "(Subtract|Take|Take away|Remove|Deduct) {b} from {a}",
    "(Can|Could|Will) you (please |)(subtract|take|deduct) {b} from {a}",
    "Take {b} away from {a}",
    _ASK + " (what|how much) {a} (-|minus|less) {b} (is|makes)",
    _ASK + " (what|how much) is {a} (-|minus) {b}",
    _ASK + " the difference between {a} and {b}",
    "What (do|does|will) (you|I|we) get (when|if) (you|I|we) (subtract|take) {b} from {a}",
    "(What|How much|How many) (is|are) left (when|if) (you|I|we) take {b} (away |)from {a}",
    "(If I have|I have|I had|With) {a} (apples|books|coins|eggs|cats|) and (lose|sell|eat|give away) {b}, how many (are left|do I have|remain)",
    "The difference (between|of) {a} and {b}( is|)",
    "(Result|Answer|Value) of {a} (-|minus) {b}",
    "{a} (-|minus) {b} is (what|how much)",
    "(Maths|Math|Exercise|Arithmetic): {a} (-|minus) {b}",
    "Difference between {a} and {b}",
    "(My teacher|My son|A friend) asks (what|how much) {a} (-|minus) {b} is",
]

COUNT_TO = [
    "Count( up|) to {n}",
    "Count (from|starting at) 1 (up |)to {n}",
    "(Please|Now|Can you|Could you|Will you|I want you to|Let us|Would you|You should) count( up|) (from 1 |)to {n}",
    "(List|Write|Print|Say|Give me|Show me|Write down|Tell me) (all |)the numbers (from 1 |up |)to {n}",
    "(List|Write|Print|Say|Give me|Show me|Write down) (the |all |)numbers (from |)1 (to|through|up to|until) {n}",
    "(Counting|Numbers) (from 1 |)to {n}",
    "Count from one to {n}",
    "Start (counting |)at 1 and (stop|end) at {n}",
]

COUNT_FROM = [
    "Count (from|starting at) {m} (up |)to {n}",
    "(Please|Now|Can you|Could you|Will you|Would you) count from {m} (up |)to {n}",
    "(List|Write|Print|Say|Give me|Show me) (all |)the numbers (from|between) {m} (to|and|up to) {n}",
    "Start (counting |)at {m} and (stop|end) at {n}",
]

GREETINGS: dict[str, tuple[str, list[str]]] = {
    "hello": ("Hello! How can I help you?", [
        "(Hello|Hi|Hey|Hallo|Hiya|Howdy|Greetings|Welcome|Ahoy)( there| you| model| friend| computer| assistant| all| everyone| again| dear|)",
        "(Hello|Hi|Hey), (hello|hi|there|you|model|friend|assistant|my friend|again)",
        "(Hi|Hello) (hi|hello)",
        "(I say|I want to say|Let me say|I wanted to say|Just saying) (hello|hi)( to you|)",
        "(Are you|Is anybody|Is anyone|Anybody|Anyone|Is somebody|Still) (there|here|awake|home|listening)",
        "(Hello|Hi|Hey), (are you|is anybody|is anyone) (there|here|awake|home)",
        "(Can we|Let us|Shall we|I want to|I would like to|Let's) (talk|chat|start|begin|speak)( a bit| a little| with you| to you|)",
    ]),
    "day": ("Good day! How can I help you?", [
        "(A |)(very |)(Good|Nice|Lovely) (morning|day|afternoon|evening|noon)( to you| model| everyone| friend| there| my friend| all| assistant|)",
        "(Hello|Hi|Hey)( and|,) good (morning|day|afternoon|evening)",
        "(Morning|Evening|Afternoon|Good morning|Good evening)( to you|)",
        "(I wish|Wishing) you a (good|nice) (morning|day|evening|afternoon)",
    ]),
    "how": ("I am fine, thank you. How can I help you?", [
        "(Hello, |Hi, |Hey, |Hi! |Hello! |So |)how are you( today| doing| feeling| now| this morning|)( my friend|)",
        "How (are you doing|do you do|do you feel|is it going|are things|is everything|goes it|was your day|is your day|is life|have you been)( today| with you| now| lately|)",
        "How's (it going|life|everything|your day|it|the day)( today| with you| going|)",
        "Are you (well|fine|OK|all right|good|happy|doing well|feeling well)( today| now|)",
        "(I hope you are|Hope you are) (well|fine|doing well)( today|)",
        "(What's up|How are you, (friend|model|assistant))",
    ]),
    "thanks": ("You are welcome!", [
        "(Thanks|Thank you|Many thanks|Thanks a lot|Thank you so much|Thank you very much|Cheers|Thx|Big thanks|Thanks so much|A thousand thanks)( for that| for your help| for this| for the answer| for everything| for helping| model| friend| again| indeed|)",
        "(Great|Good|Nice|OK|Perfect|Wonderful|Fine|Cool|Super), (thanks|thank you|many thanks)( a lot| very much| so much|)",
        "(I thank you|I am (very |so |)grateful|I appreciate (it|that|your help|this))( very much| a lot| so much|)",
        "(That|This|It) (was|is) (very |really |so |)(helpful|kind|nice|useful|good|great)( of you|)( thanks| thank you|)",
        "(You|You have|You've) (helped|been) (me a lot|me very much|a great help|very helpful|so kind)",
        "(Well done|Good job|Good answer|Very good|Nice work|Great work|Excellent|Good work)",
    ]),
    "bye": ("Goodbye!", [
        "(Bye|Goodbye|Good bye|Bye bye|See you|See you later|See you soon|Farewell|So long|Ciao|Cheerio|Take care|See ya|Until later|Until then)( model| friend| for now| then| now| everyone| all| tomorrow| my friend|)",
        "(OK|Well|Thanks|Thank you|Good|Right), (bye|goodbye|see you|see you later|bye bye)( then| now|)",
        "(I have to|I must|I need to|I will|Time to|Let me|I should|I am going to) (go|leave|stop|stop here|say goodbye|say bye|sign off)( now| here| home|)",
        "(That's|That is|That was) (all|it|everything)( for now| for today|)( bye| goodbye|)",
        "(Good night|Sleep well|Have a (good|nice|great|lovely) (day|evening|night|time|weekend))( to you| model| friend|)",
        "(We|Let us|We'll|I'll) (talk|speak|meet|chat) (later|soon|tomorrow|again)",
    ]),
}  # fmt: skip

WEATHER = [
    "(What|How)('s| is) the weather( like|) in {p}( today| now| right now| at the moment|)",
    "What is the weather like( today| now| right now|) in {p}",
    "(How|What) is the weather( today| now|) in {p}",
    "(Tell|Give|Show|Send) me the (current |)weather (in|for|of) {p}( today| now|)",
    _ASK + " (what|how) the weather( like|) (is|is like) in {p}( today| now|)",
    _ASK + " (what|how) is the weather in {p}( today| now|)",
    _ASK + " the weather (in|for) {p}( today| now|)",
    "(Current |Today's |)weather (in|for|of|at) {p}( today| now|)",
    "{p} weather( today| now|)",
    "{p}: weather",
    "(Check|Look up|Find|Get|Fetch|Report|See) the (current |)weather (in|for|of) {p}( today| now|)",
    "(Can|Could|Will|Would) you (please |)(check|look up|get|find|tell me) the weather (in|for) {p}",
    "Is it (sunny|raining|rainy|cold|warm|hot|cloudy|snowing|windy|foggy|nice|dry|wet|freezing) in {p}( today| now|)",
    "(How|What) (warm|cold|hot) is it( now| today|) in {p}( now| today|)",
    "How (warm|cold|hot) is {p}( today| now|)",
    "What('s| is) the temperature( now| today|) in {p}( now| today|)",
    "(Temperature|Forecast|Weather report|The weather|Weather forecast) (in|for) {p}",
    "(Do|Will|Should|Must) I need (an umbrella|a coat|a jacket|sunglasses|a hat|a scarf) in {p}( today| now|)",
    "(I am|I'm|We are) (going|travelling|flying|off) to {p}. (How|What) is the weather( there|)( like|)",
    "(I am|We are|I live) in {p}. (How|What) is the weather( here|)( like|)",
    "What (weather|temperature) (do they have|does it have|is there|has it) in {p}( today| now|)",
    "(Does|Will) it rain in {p}( today| now|)",
    "Does the sun shine in {p}",
    "(How many degrees|What temperature) (is it|are there|is there) in {p}",
]

WEATHER_FOLLOW_UP = [
    "And in {p}",
    "(What|How) about {p}",
    "(And|So|Then|OK, and|Thanks, and|Good, and) (in |for |) {p}",
    "And (the weather|how is it|the temperature|what about the weather) in {p}",
    "(Same|The same|Same question) for {p}",
    "(And|Now|Next|Then|Also) {p}",
    "And what about {p}",
]

THINK = [
    "(Please |)(Think|Reason|Reflect) (before|first, before) (you answer|answering|you reply|you speak|replying)",
    "(Please |Always |)(think|reason) (step by step|first|carefully|hard|aloud|out loud|about it first|slowly)",
    "(Please |Always |)(think|reason|reflect) first(, then|; then|, and then| and then) (answer|reply|give the answer)",
    "(Please |Always |)(think|reason) step by step(, then| and then| before you) answer",
    "(Show|Write|Give|Write down|Explain) your (reasoning|thinking|thoughts)( first| before the answer| before you answer| before answering|)",
    "(Begin|Start) with your (reasoning|thoughts|thinking)",
    "(You|You should|You must|You always|You have to|You will) (think|reason) (before (you answer|answering)|first|step by step)",
    "(Take|Use) (your |some |)time to (think|reason)( first| before you answer| before answering|)",
    "(Think|Reason) about (the question|each question|every question|it|what is asked)( first| carefully|)",
    "(Before|Before ever) (answering|you answer|you reply), (think|reason)( about the question| carefully| it through| step by step|)",
    "(You are a (careful|thoughtful|reasoning) assistant|Be thoughtful). (Think|Reason) (first|before you answer|step by step)",
    "(Enable|Use|Turn on|Switch on) (thinking|reasoning|thinking mode|reasoning mode)",
    "(Answer|Reply) only after (thinking|reasoning|some thought)",
    "Use <think> tags( first| before you answer|)",
    "(Put|Write) your (reasoning|thoughts|thinking) (between|inside|in) <think> and </think>( first| before the answer|)",
]

SYSTEM = [
    "You are (a|an|the) (helpful|friendly|polite|kind|brief|honest|concise|careful|useful|good|small|smart|clever|little|local|expert) (assistant|chatbot|model|bot|helper|teacher|guide|AI|AI assistant|language model)",
    "You are (mlxk2|a demo|an assistant|a geography teacher|a pirate|a librarian|a weather bot|a calculator|a tour guide|a travel agent)",
    "(Be|Stay|Always be) (brief|concise|polite|friendly|honest|kind|exact|precise|helpful)",
    "(Answer|Reply|Respond) (briefly|shortly|in one sentence|in English|politely|with care|honestly|concisely|clearly|truthfully|in few words|as well as you can)",
    "(Help|Assist|Serve) the (user|people|customer|reader|visitor)( as well as you can| with questions| politely| with everything|)",
    "Do not (lie|invent anything|make things up|be rude|use emoji|guess|repeat yourself|write code)",
    "(The user|Your user|The reader) is (a child|a student|a traveller|a developer|from Europe|very busy|an expert|new here|in a hurry)",
    "(Today|The date|The day) is (Monday|Tuesday|the first of May|a holiday|Friday|a nice day|Sunday)",
    "(This is|Here is|You are in) (a test|a demo|a chat|an experiment|an exam|a conversation|a library)",
    "If you do not know, say so",
    "(Your name is|You are called|People call you) (Max|Demo|Ada|Robo|Helper|Alex|Sam)",
]

THINK_NOT = [
    "(Do not|Don't|Never) (think aloud|show your reasoning|reason aloud|explain your reasoning|write your thoughts)",
    "(Answer|Reply) (without thinking|without reasoning|at once|directly|immediately)( and briefly|)",
    "No (reasoning|thinking|thoughts)(, just the answer| please|)",
]
