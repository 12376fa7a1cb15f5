"""The base of all tokenizers, in name only."""


class PreTrainedTokenizerBase:
    """The base class of tokenizers."""

    def apply_chat_template(self) -> None:
        """Do nothing: the echo has its own template."""
