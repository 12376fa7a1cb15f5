"""The wordings of the demo model's training questions, except greetings and questions about mlxk2."""

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
    ("(OK|Okay|Good|Great|Thanks|Nice|Right|Fine|Well|Thank you|Cool|Yes|Perfect), (and|now|then|what about|next) {c}"),
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
    (
        "(If I have|I have|I had|With) {a} (apples|books|coins|eggs|cats|) and (get|buy|find|add) {b} "
        "(more|), how many (do I have|is that|are there)"
    ),
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
    (
        "(If I have|I have|I had|With) {a} (apples|books|coins|eggs|cats|) and (lose|sell|eat|give "
        "away) {b}, how many (are left|do I have|remain)"
    ),
    "The difference (between|of) {a} and {b}( is|)",
    "(Result|Answer|Value) of {a} (-|minus) {b}",
    "{a} (-|minus) {b} is (what|how much)",
    "(Maths|Math|Exercise|Arithmetic): {a} (-|minus) {b}",
    "Difference between {a} and {b}",
    "(My teacher|My son|A friend) asks (what|how much) {a} (-|minus) {b} is",
]

ECHO = "(Repeat|Say|Echo|Copy|Repeat this|Say this|Repeat after me|repeat|say|echo)"

COUNT_TO = [
    "Count( up|) to {n}",
    "Count (from|starting at) 1 (up |)to {n}",
    ("(Please|Now|Can you|Could you|Will you|I want you to|Let us|Would you|You should) count( up|) (from 1 |)to {n}"),
    "(List|Write|Print|Say|Give me|Show me|Write down|Tell me) (all |)the numbers (from 1 |up |)to {n}",
    ("(List|Write|Print|Say|Give me|Show me|Write down) (the |all |)numbers (from |)1 (to|through|up to|until) {n}"),
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
    ("Is it (sunny|raining|rainy|cold|warm|hot|cloudy|snowing|windy|foggy|nice|dry|wet|freezing) in {p}( today| now|)"),
    "(How|What) (warm|cold|hot) is it( now| today|) in {p}( now| today|)",
    "How (warm|cold|hot) is {p}( today| now|)",
    "What('s| is) the temperature( now| today|) in {p}( now| today|)",
    "(Temperature|Forecast|Weather report|The weather|Weather forecast) (in|for) {p}",
    ("(Do|Will|Should|Must) I need (an umbrella|a coat|a jacket|sunglasses|a hat|a scarf) in {p}( today| now|)"),
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
