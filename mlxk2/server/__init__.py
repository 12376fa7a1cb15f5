"""The OpenAI-compatible server: the only room that imports fastapi, starlette, uvicorn and pydantic."""
