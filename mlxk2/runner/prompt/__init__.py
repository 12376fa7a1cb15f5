"""From messages to token ids; chat templates and tokenizers run in processes of their own."""
