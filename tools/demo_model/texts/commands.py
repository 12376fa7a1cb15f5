"""The demo model's answers about the commands of mlxk2, with the wordings of their questions."""

from __future__ import annotations

HOW = (
    "(How (do|can|could|should|would|must|may) (I|we|you|one)|How to|What is the command to|Which "
    "command (do I use to|is there to|will|does|can)|Tell me how to|Show me how to|Explain how to|I "
    "want to|I need to|I would like to|Can you tell me how to|Please tell me how to|What do I (type|do|"
    "run|enter|need) to|What must I (type|do) to|Can I|Is there a (command|way) to|Help me|With (what|"
    "which) command do I|Could you (show|tell) me how to|I do not know how to|Do you know how to)"
)
_MODEL = "(a|the|my|some|one) (model|language model|MLX model|local model|chat model)"
_MODELS = (
    "(models|my models|all models|the models|local models|cached models|the cached models|installed "
    "models|downloaded models)"
)
WITH = "( with mlxk2| in mlxk2| using mlxk2| by mlxk2| here|||)"

COMMANDS: dict[str, tuple[str, list[str]]] = {
    "list": (
        "Use mlxk2 list to see your models.",
        [
            HOW + " (list|see|show|view|display|find|look at|print) " + _MODELS + WITH,
            (
                (
                    "(Which|What) models (do I have|are there|are cached|are installed|are on this "
                    "computer|have I got|are here|did I download|are downloaded|do I own)"
                )
                + WITH
            ),
            "(List|Show|Show me|Display|Print|See) (" + _MODELS + "|all my models)" + WITH,
            "Where (can|do) I (see|find) " + _MODELS,
            "What does mlxk2 list do",
            "(Which|What) (command|one) (shows|displays|prints|lists) (all models|my models|the models)",
            "(Give|Get|Show) me (a|the) list of (my models|all models|the models)",
            "How (do|could) I (get|see|have) (a|the) list of (all models|the models|models)",
            "Command (for listing|to list|to see) " + _MODELS,
        ],
    ),
    "pull": (
        "Use mlxk2 pull with the name of the model to download it.",
        [
            (
                HOW
                + " (pull|download|get|fetch|install|load down|obtain) "
                + ("(a|the|some|another|one more|a new) (model|language model|MLX model|new model|chat model)")
                + WITH
            ),
            "(Where|How) do I get (models|a model|new models|more models)( from|)" + WITH,
            "What does mlxk2 pull do",
            (
                "(Which|What) (command|one) (gets|fetches|pulls|installs|downloads) (models|the models|"
                "my model|the model|an MLX model)"
            ),
            "(Download|Pull|Fetch|Install|Get) (a|another|the|some) model" + WITH,
            "Command (for downloading|to download|to pull|for pulling) (a model|models)",
            "(I have no|There is no|I need a|I want a) (model|new model|model yet)",
            "How (does|do) (pulling|downloading|pull) (a model |models |)work",
        ],
    ),
    "run": (
        "Use mlxk2 run with the name of the model and your prompt.",
        [
            HOW + " (run|start|use|try|chat with|talk to|ask|prompt|execute) " + _MODEL + WITH,
            "What does mlxk2 run do",
            (
                "(Which|What) (command|one) (starts|uses|tries|executes|runs) (models|the models|my "
                "model|the model|an MLX model)"
            ),
            "(Run|Use|Start|Try|Execute) (a|the|my) model" + WITH,
            "Command (for running|to run|to use|to chat with) (a model|models)",
            "How (does|do) (running|run|chatting with) (a model |models |)work",
            HOW + " (generate text|chat|start a chat|ask a question|generate an answer)" + WITH,
        ],
    ),
    "serve": (
        "Use mlxk2 serve to start the server.",
        [
            (
                HOW
                + (
                    " (start|run|launch|open|use|begin|bring up) (a|the|my|your|its|the local|the API|a "
                    "local|the HTTP|the mlxk2) server"
                )
                + WITH
            ),
            HOW + " serve (a|the|my) model" + WITH,
            "What does mlxk2 (serve|server) do",
            "(Start|Launch|Run|Open) (the|a) (local |API |)server" + WITH,
            "Command (for starting|to start|for|to run|to launch) (the|a) server",
            "(Is there|Does it have|Has mlxk2|Does mlxk2 have) a server",
            "How (does|do) (serving|the server) (a model |)(start|work)",
        ],
    ),
    "health": (
        "Use mlxk2 health to check your models.",
        [
            (
                HOW
                + " (check|test|verify|examine|validate) "
                + "((the |)(health|integrity) of (a model|my models|models|the models)|("
                + _MODELS
                + "|my model|a model|whether a model is (healthy|intact|whole|complete|broken)))"
                + WITH
            ),
            (
                "(Is|Are) (my model|my models|a model|the models|the model) (healthy|intact|complete|"
                "broken|damaged|corrupt|whole|OK)"
            ),
            "What does mlxk2 health do",
            (
                "(Which|What) (command|one) (verifies|tests|examines|validates|checks) (models|the "
                "models|my model|the model|an MLX model)"
            ),
            (
                "How (do I|can I|would I) (find out|see) (if|whether|that) (my models are|a model is) "
                "(intact|healthy|whole)"
            ),
            "Command (for checking|to check|to verify) (models|a model|the health)",
            (
                ("(Check|Verify|Test|Validate) (the health of |)(my models|a model|my model|the models|all models)")
                + WITH
            ),
            HOW + " find (broken|damaged|corrupt|incomplete|bad) models" + WITH,
        ],
    ),
    "rm": (
        "Use mlxk2 rm with the name of the model to remove it.",
        [
            (
                HOW
                + (
                    " (remove|delete|erase|uninstall|rm|drop|get rid of|throw away) (a|the|my|some|one|"
                    "an old|this) (model|language model|MLX model|old model|cached model)"
                )
                + WITH
            ),
            "What does mlxk2 rm do",
            (
                "(Which|What) (command|one) (deletes|erases|drops|uninstalls|removes) (models|the "
                "models|my model|the model|an MLX model)"
            ),
            (
                "I (do not|don't) (need|like|want) (a|the|my|that) model (any more|any longer|now), "
                "(how do I delete it|what do I type|how to remove it)"
            ),
            "(Remove|Delete|Erase|Uninstall|Drop) (a|the|my|an old|this) model" + WITH,
            "Command (for removing|to remove|to delete|for deleting) (a model|models)",
            HOW + " (free|save|get back|win) (some |)(disk |)space" + WITH,
        ],
    ),
    "show": (
        "Use mlxk2 show with the name of the model to see its details.",
        [
            (
                HOW
                + (
                    " (see|show|view|get|find|read|look at|inspect|print) (the |)(details|files|config|"
                    "information|facts|metadata|size|configuration) (of|about|for) (a|the|my|one) model"
                )
                + WITH
            ),
            "What does mlxk2 show do",
            (
                "(Which|What) (command|one) (prints|gives|displays|shows) the (files|config|metadata|"
                "facts) of (a|the|my) model"
            ),
            (
                (
                    "(Show|Show me|Give me|Print|Inspect) (the |)(details|files|config|information|"
                    "metadata) (of|about) (a|the|my) model"
                )
                + WITH
            ),
            ("Command (for|to see|to show|to inspect) (the |)(details|files|config|metadata) (of|about) a model"),
            HOW + " inspect (a|the|my|one) model" + WITH,
        ],
    ),
    "clone": (
        "Use mlxk2 clone with the name of the model and a folder.",
        [
            (
                HOW
                + (" (clone|copy|duplicate) (a|the|my) (model|MLX model|cached model)( to a folder| into a folder|)")
                + WITH
            ),
            "What does mlxk2 clone do",
            (
                "(Which|What) (command|one) (copies|duplicates|clones) (models|the models|my model|the "
                "model|an MLX model)"
            ),
            "(Clone|Copy|Duplicate) (a|the|my) model( to a folder| into a folder|)" + WITH,
            (HOW + (" (make|get|create) (an editable|a local|a|an) (copy|folder|workspace) of (a|the|my) model")),
            "Command (for cloning|to clone|to copy) (a model|models)",
        ],
    ),
    "push": (
        "Use mlxk2 push with a folder and the name of the repository.",
        [
            (
                HOW
                + (
                    " (push|upload|publish|share) (a|the|my|one) (model|folder|workspace|MLX model)( to "
                    "the hub| to Hugging Face|)"
                )
                + WITH
            ),
            "What does mlxk2 push do",
            "(Push|Upload|Publish|Share) (a|the|my) (model|folder|workspace)( to the hub|)" + WITH,
            "Command (for pushing|to push|to upload|for uploading) (a model|a folder|models)",
        ],
    ),
    "json": (
        "Add --json to the command.",
        [
            (
                HOW
                + (
                    " (get|have|see|print|produce|obtain|use|switch on|enable) (JSON|json|JSON output|"
                    "the output as JSON|output in JSON|results as JSON|machine readable output)"
                )
                + WITH
            ),
            ("(Is there|Does mlxk2 have|Has mlxk2|Does it have|Can it do) (JSON|JSON output|a JSON API|a JSON mode)"),
            (
                "(Which|What) (flag|option) (gives|prints|is for|makes|turns on|enables) (JSON|JSON "
                "output|machine readable output)"
            ),
            "(JSON output|Output as JSON|JSON)" + WITH,
            "What does --json do",
            "(Can|Does|Could) mlxk2 (print|output|speak|give|write) JSON",
        ],
    ),
    "version": (
        "Use mlxk2 --version to see the version.",
        [
            (HOW + (" (see|find|show|get|check|print|learn|know) (the|my|your|its) version( of mlxk2| number|)")),
            (
                "(What|Which) version (of mlxk2 |)(is this|do I have|is it|is installed|are you|am I "
                "using|is running|is there)( of mlxk2|)"
            ),
            "(What is|Tell me|Show) (the|your|its|my) version( of mlxk2| number|)",
            "mlxk2 version",
            "What does --version do",
        ],
    ),
    "help": (
        "Use mlxk2 --help to see all commands.",
        [
            (
                HOW
                + (
                    " (get|see|find|read|show|open) (help|the help|all commands|the commands|the options|"
                    "the manual|all options)"
                )
                + WITH
            ),
            (
                (
                    "(Which|What) (commands|options|flags) (are there|does mlxk2 have|exist|has mlxk2|do "
                    "you have|can I use|does it have|are available)"
                )
                + WITH
            ),
            "(List|Show|Print|Show me) (all |the )(commands|options|help)" + WITH,
            "What does --help do",
            (
                "(Is there|Where is|Where can I find) (a manual|the help|help|a list of commands|the "
                "manual)( for mlxk2| of mlxk2|)"
            ),
        ],
    ),
}
