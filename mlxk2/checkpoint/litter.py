"""Which files of a folder are not the model's: what tools and systems leave there, and what holds secrets.

All patterns are those of a `.gitignore`, without a slash, and mean files and folders of any case at any depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from functools import cache

# Left by the clients of the hub, git, Python, macOS, Windows, Linux and programs that synchronise folders.
TOOLS = (
    ".git", ".cache", ".huggingface", ".hg", ".svn", ".jj",
    ".venv", "venv", "__pycache__", "*.pyc", ".ipynb_checkpoints",
    ".DS_Store", "._*", ".AppleDouble", ".localized", ".Spotlight-V100", ".Trashes", ".fseventsd", ".TemporaryItems",
    ".DocumentRevisions-V100", ".apdisk", "Icon[!!-~]", ".*.icloud",
    "Thumbs.db", "ehthumbs.db", "desktop.ini", "$RECYCLE.BIN", "System Volume Information",
    "lost+found", ".Trash-*", ".nfs*", ".fuse_hidden*", ".directory",
    ".dropbox", ".dropbox.*", ".stfolder", ".stversions", ".syncthing.*",
)  # fmt: skip
# A repo may well have these, so that they count in the cache; of a folder of the user's they are no part of the model.
PRIVATE = (
    "*.lock", "*.part", "*.crdownload", "*.sw[op]", "?*~", ".idea", ".vscode", ".tox", ".nox", ".pytest_cache",
    ".mypy_cache", ".ruff_cache", "node_modules",
)  # fmt: skip
SECRET_FOLDERS = (".ssh", ".aws", ".gnupg", ".kube", ".docker", ".azure", ".gcloud", ".secrets", ".password-store")
SECRETS = (
    ".env*", "*.env", ".netrc*", "_netrc*", ".git-credentials*", ".npmrc*", ".pypirc*", ".pgpass*", ".my.cnf*",
    ".s3cfg*", ".boto*", ".dockercfg*", ".htpasswd*", ".vault-token*", ".vault_pass*", ".authinfo*", ".databrickscfg*",
    ".terraformrc*", ".*_history", "*.tfstate*", "*.tfvars*",
    "*.pem", "*.pem.*", "*.key", "*.key.*", "*.p8", "*.p12", "*.pfx", "*.ppk", "*.jks", "*.keystore", "*.kdb", "*.kdbx",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*_rsa", "*_dsa", "*_ecdsa", "*_ed25519",
    "credentials", "credentials.db", "credentials.toml", "*credentials*.json", "access_tokens.db",
    "client_secret*.json", "*service[-_]account*.json", "*serviceaccount*.json", "*-adminsdk-*.json", "kaggle.json",
    "secret.json", "secret.toml", "secret.yaml", "secret.yml", "secret.txt",
    "secrets.json", "secrets.toml", "secrets.yaml", "secrets.yml", "secrets.txt",
    "api[-_]key", "api[-_]key.txt", "*_api_key", "*_api_key.txt", ".hf_token", "hf_token", "hf_token.txt",
    "stored_tokens",
)  # fmt: skip
NO_SECRETS = (
    ".env*example", ".env*sample", ".env*template", ".env*dist", "example.env", "sample.env", "template.env",
    "id_*.pub",
)  # fmt: skip


def is_litter(path: str) -> bool:
    """Whether tools or systems left this file or folder, or a folder above it."""
    return any(map(_TOOLS.match, path.split("/")))


def stays_at_home(path: str) -> bool:
    """Whether this file or folder of a folder of the user's is no part of the model, so that no push uploads it.

    What the user says of it in a `.hfignore` is not looked at.
    """
    return any(_at_home().match(part) and not _no_secrets().match(part) for part in path.split("/"))


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)), re.IGNORECASE)


# These patterns take milliseconds to compile, and only folders of the user's need them.
@cache
def _at_home() -> re.Pattern[str]:
    return _any_of((*TOOLS, *PRIVATE, *SECRET_FOLDERS, *SECRETS))


@cache
def _no_secrets() -> re.Pattern[str]:
    return _any_of(NO_SECRETS)


_TOOLS = _any_of(TOOLS)
