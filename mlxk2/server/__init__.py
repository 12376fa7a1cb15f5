"""Serve models over HTTP; only this package imports fastapi, starlette, uvicorn and pydantic."""
