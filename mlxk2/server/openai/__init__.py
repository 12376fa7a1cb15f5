"""OpenAI's API: request bodies, responses, streams and errors."""
