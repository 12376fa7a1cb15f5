"""Greetings, thanks and goodbyes: the answer to each kind, and its wordings."""

from __future__ import annotations

GREETINGS: dict[str, tuple[str, list[str]]] = {
    "hello": (
        "Hello! How can I help you?",
        [
            "(Hello|Hi|Hey|hello|hi|hey)",
            (
                "(Hello|Hi|Hey|Hallo|Hiya|Howdy|Greetings|Welcome|Ahoy)( there| you| model| friend| "
                "computer| assistant| all| everyone| again| dear|)"
            ),
            "(Hello|Hi|Hey), (hello|hi|there|you|model|friend|assistant|my friend|again)",
            "(Hi|Hello) (hi|hello)",
            "(I say|I want to say|Let me say|I wanted to say|Just saying) (hello|hi)( to you|)",
            ("(Are you|Is anybody|Is anyone|Anybody|Anyone|Is somebody|Still) (there|here|awake|home|listening)"),
            "(Hello|Hi|Hey), (are you|is anybody|is anyone) (there|here|awake|home)",
            (
                "(Can we|Let us|Shall we|I want to|I would like to|Let's) (talk|chat|start|begin|"
                "speak)( a bit| a little| with you| to you|)"
            ),
        ],
    ),
    "day": (
        "Good day! How can I help you?",
        [
            (
                "(A |)(very |)(Good|Nice|Lovely) (morning|day|afternoon|evening|noon)( to you| model| "
                "everyone| friend| there| my friend| all| assistant|)"
            ),
            "(Hello|Hi|Hey)( and|,) good (morning|day|afternoon|evening)",
            "(Morning|Evening|Afternoon|Good morning|Good evening)( to you|)",
            "(I wish|Wishing) you a (good|nice) (morning|day|evening|afternoon)",
        ],
    ),
    "how": (
        "I am fine, thank you. How can I help you?",
        [
            (
                "(Hello, |Hi, |Hey, |Hi! |Hello! |So |)how are you( today| doing| feeling| now| this "
                "morning|)( my friend|)"
            ),
            (
                "How (are you doing|do you do|do you feel|is it going|are things|is everything|goes it|"
                "was your day|is your day|is life|have you been)( today| with you| now| lately|)"
            ),
            "How's (it going|life|everything|your day|it|the day)( today| with you| going|)",
            "Are you (well|fine|OK|all right|good|happy|doing well|feeling well)( today| now|)",
            "(I hope you are|Hope you are) (well|fine|doing well)( today|)",
            "(What's up|How are you, (friend|model|assistant))",
        ],
    ),
    "thanks": (
        "You are welcome!",
        [
            (
                "(Thanks|Thank you|Many thanks|Thanks a lot|Thank you so much|Thank you very much|"
                "Cheers|Thx|Big thanks|Thanks so much|A thousand thanks)( for that| for your help| for "
                "this| for the answer| for everything| for helping| model| friend| again| indeed|)"
            ),
            (
                "(Great|Good|Nice|OK|Perfect|Wonderful|Fine|Cool|Super), (thanks|thank you|many "
                "thanks)( a lot| very much| so much|)"
            ),
            (
                "(I thank you|I am (very |so |)grateful|I appreciate (it|that|your help|this))( very "
                "much| a lot| so much|)"
            ),
            (
                "(That|This|It) (was|is) (very |really |so |)(helpful|kind|nice|useful|good|great)( of "
                "you|)( thanks| thank you|)"
            ),
            "(You|You have|You've) (helped|been) (me a lot|me very much|a great help|very helpful|so kind)",
            "(Well done|Good job|Good answer|Very good|Nice work|Great work|Excellent|Good work)",
        ],
    ),
    "bye": (
        "Goodbye!",
        [
            (
                "(Bye|Goodbye|Good bye|Bye bye|See you|See you later|See you soon|Farewell|So long|"
                "Ciao|Cheerio|Take care|See ya|Until later|Until then)( model| friend| for now| then| "
                "now| everyone| all| tomorrow| my friend|)"
            ),
            ("(OK|Well|Thanks|Thank you|Good|Right), (bye|goodbye|see you|see you later|bye bye)( then| now|)"),
            (
                "(I have to|I must|I need to|I will|Time to|Let me|I should|I am going to) (go|leave|"
                "stop|stop here|say goodbye|say bye|sign off)( now| here| home|)"
            ),
            "(That's|That is|That was) (all|it|everything)( for now| for today|)( bye| goodbye|)",
            (
                "(Good night|Sleep well|Have a (good|nice|great|lovely) (day|evening|night|time|"
                "weekend))( to you| model| friend|)"
            ),
            "(We|Let us|We'll|I'll) (talk|speak|meet|chat) (later|soon|tomorrow|again)",
        ],
    ),
}
