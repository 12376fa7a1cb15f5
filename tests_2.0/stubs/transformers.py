"""The base of all tokenizers, in name only."""


class PreTrainedTokenizerBase:
    """What a tokenizer inherits."""

    def apply_chat_template(self) -> None:
        """Not called: the echo has a template of its own."""
