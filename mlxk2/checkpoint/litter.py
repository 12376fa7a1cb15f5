"""Which files of a folder are not the model's: what tools and systems leave there, and what holds secrets.

All patterns are those of a `.gitignore`, without a slash, and mean files and folders of any case at any depth.
"""

from __future__ import annotations

import re
from fnmatch import translate
from functools import cache

# Left by the clients of the hub, git, Python, macOS, Windows, Linux and programs that synchronise folders.
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
# A repo may have these, so that they count in the cache. In a user's folder they are no part of the model.
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
    """Return whether tools or systems left this file or folder, or a folder above it."""
    return any(map(_pattern(TOOLS).match, path.split("/")))


def is_private(path: str) -> bool:
    """Return whether this file or folder of a user's folder is no part of the model: litter, work files and secrets."""
    private, exceptions = _pattern(PRIVATE), _pattern(NO_SECRETS)
    return any(private.match(part) and not exceptions.match(part) for part in path.split("/"))


@cache
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """Return the pattern of any of these names. The long ones take milliseconds to compile; few commands use them."""
    return re.compile("|".join(map(translate, names)), re.IGNORECASE)
