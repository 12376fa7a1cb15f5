"""OpenAI's API: the bodies of requests, responses, streams and errors."""
