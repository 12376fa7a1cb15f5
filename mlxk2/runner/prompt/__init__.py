"""From messages to token ids; templates and tokenizers work in processes of their own."""
