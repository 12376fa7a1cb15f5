"""Patterns of files that are in a model's folder but are not part of the model: traces of tools, and secrets.

The patterns have the syntax of a `.gitignore`, without a slash. They match files and folders in upper and lower case at
any depth.
"""

from __future__ import annotations

import re
from fnmatch import translate
from functools import cache

# Files and folders of the hub's clients, git, Python, macOS, Windows, Linux and programs that synchronise folders.
TOOLS = (
    ".git",
    ".cache",
    ".huggingface",
    ".hg",
    ".svn",
    ".jj",
    ".venv",
    "venv",
    "__pycache__",
    "*.pyc",
    ".ipynb_checkpoints",
    ".DS_Store",
    "._*",
    ".AppleDouble",
    ".localized",
    ".Spotlight-V100",
    ".Trashes",
    ".fseventsd",
    ".TemporaryItems",
    ".DocumentRevisions-V100",
    ".apdisk",
    "Icon[!!-~]",
    ".*.icloud",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    ".Trash-*",
    ".nfs*",
    ".fuse_hidden*",
    ".directory",
    ".dropbox",
    ".dropbox.*",
    ".stfolder",
    ".stversions",
    ".syncthing.*",
)
# A repo on the hub can contain these, so in the cache they are part of the model. In a user's folder they are not.
WORK_FILES = (
    "*.lock",
    "*.part",
    "*.crdownload",
    "*.sw[op]",
    "?*~",
    ".idea",
    ".vscode",
    ".tox",
    ".nox",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    "node_modules",
)
SECRET_FOLDERS = (".ssh", ".aws", ".gnupg", ".kube", ".docker", ".azure", ".gcloud", ".secrets", ".password-store")
SECRETS = (
    ".env*",
    "*.env",
    ".netrc*",
    "_netrc*",
    ".git-credentials*",
    ".npmrc*",
    ".pypirc*",
    ".pgpass*",
    ".my.cnf*",
    ".s3cfg*",
    ".boto*",
    ".dockercfg*",
    ".htpasswd*",
    ".vault-token*",
    ".vault_pass*",
    ".authinfo*",
    ".databrickscfg*",
    ".terraformrc*",
    ".*_history",
    "*.tfstate*",
    "*.tfvars*",
    "*.pem",
    "*.pem.*",
    "*.key",
    "*.key.*",
    "*.p8",
    "*.p12",
    "*.pfx",
    "*.ppk",
    "*.jks",
    "*.keystore",
    "*.kdb",
    "*.kdbx",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    "*_rsa",
    "*_dsa",
    "*_ecdsa",
    "*_ed25519",
    "credentials",
    "credentials.db",
    "credentials.toml",
    "*credentials*.json",
    "access_tokens.db",
    "client_secret*.json",
    "*service[-_]account*.json",
    "*serviceaccount*.json",
    "*-adminsdk-*.json",
    "kaggle.json",
    "secret.json",
    "secret.toml",
    "secret.yaml",
    "secret.yml",
    "secret.txt",
    "secrets.json",
    "secrets.toml",
    "secrets.yaml",
    "secrets.yml",
    "secrets.txt",
    "api[-_]key",
    "api[-_]key.txt",
    "*_api_key",
    "*_api_key.txt",
    ".hf_token",
    "hf_token",
    "hf_token.txt",
    "stored_tokens",
)
PRIVATE = (*TOOLS, *WORK_FILES, *SECRET_FOLDERS, *SECRETS)
NO_SECRETS = (
    ".env*example",
    ".env*sample",
    ".env*template",
    ".env*dist",
    "example.env",
    "sample.env",
    "template.env",
    "id_*.pub",
)


def is_litter(path: str) -> bool:
    """Return whether a tool or an operating system created this file or folder, or a folder above it."""
    return any(map(_pattern(TOOLS).match, path.split("/")))


def is_private(path: str) -> bool:
    """Return whether a path in a user's folder is litter, a work file or a secret, and so not part of the model."""
    private, exceptions = _pattern(PRIVATE), _pattern(NO_SECRETS)
    return any(private.match(part) and not exceptions.match(part) for part in path.split("/"))


@cache
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """Compile the pattern for any of these names on first use: that takes milliseconds, and few commands need it."""
    return re.compile("|".join(map(translate, names)), re.IGNORECASE)
