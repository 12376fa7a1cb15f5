"""`push` leaves out secrets and reports them; a user can choose to push them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.layouts import chat_model
from support.pushing import Pusher

from mlxk2.checkpoint import litter
from mlxk2.workspace.ignore import Ignore

DOCUMENT = Path(__file__).parents[1] / "docs" / "push.md"
WHOLE = {name: content for name, content in chat_model().items() if isinstance(content, bytes)}
SECRETS = [
    ".env",
    ".env.local",
    ".env.production",
    ".envrc",
    "sub/.env",
    "prod.env",
    ".ENV",
    ".netrc",
    "_netrc",
    ".git-credentials",
    ".npmrc",
    ".pypirc",
    ".ssh/id_rsa",
    ".ssh/config",
    "sub/.ssh/known_hosts",
    ".aws/credentials",
    ".aws/config",
    ".gnupg/secring.gpg",
    ".kube/config",
    ".docker/config.json",
    ".azure/accessTokens.json",
    ".huggingface/token",
    "key.pem",
    "certs/Server.PEM",
    "private.key",
    "id_rsa",
    "id_rsa.old",
    "id_ed25519",
    "credentials.json",
    "credentials-prod.json",
    "gcp/application_default_credentials.json",
    "client_secret_1.json",
    "service-account.json",
    "service_account_key.json",
    "kaggle.json",
    "secrets.toml",
    ".bash_history",
    "hf_token",
    ".netrc.bak",
    ".npmrc~",
    "deploy_rsa",
    "keys/github_ed25519",
    "server.pem.old",
    "AuthKey_1.p8",
    "my-credentials.json",
    "serviceAccountKey.json",
    "app-firebase-adminsdk-1.json",
    ".secrets/x",
    "Secret.yaml",
    "openai_api_key.txt",
    "terraform.tfstate.backup",
    ".vault_pass",
    "Id_RSA",
]
NO_SECRETS = [
    ".env.example",
    ".env.sample",
    ".env.template",
    ".env.local.example",
    "example.env",
    "id_rsa.pub",
    ".gitattributes",
    ".gitignore",
    ".hfignore",
    "tokenizer.json",
    "token",
    "tokens.txt",
    "special_tokens_map.json",
    "environment.yml",
    "keys.txt",
    "monkey.py",
    "keyboard.md",
    "secrets.md",
    "history.md",
    "training_history.txt",
    "ssh/notes.txt",
    "credentials.md",
    "env/a.txt",
    "docker/Dockerfile",
    "pem/a.txt",
    "idempotent.txt",
    "id_map.json",
    "aws.md",
    "model.keys.json",
    "secret.md",
    "adversa",
    "api_keys.md",
    "secretary.json",
    "tfstate.md",
]


def left_out(pusher: Pusher) -> list[str]:
    """Return the names of the files that the check reports as left out."""
    anomalies = pusher.data("--check-only")["workspace_health"]["anomalies"]
    return [anomaly["path"] for anomaly in anomalies if anomaly["code"] == "secret_left_out"]


def test_secrets_are_left_out_and_named(pusher: Pusher) -> None:
    pusher.write(WHOLE | dict.fromkeys(SECRETS, b"hush"))
    found = [name for name in SECRETS if (pusher.folder / name).exists()]
    assert sorted(left_out(pusher)) == sorted(found)
    assert pusher.data("--check-only")["workspace_health"]["healthy"]
    assert pusher.data("--check-only")["workspace_health"]["files_count"] == len(WHOLE)
    planned, pushed = pusher.data("--dry-run"), pusher.data("--private", "--create")
    assert planned["secrets_left_out"] == pushed["secrets_left_out"] == sorted(found)
    assert sorted(planned["added_files"]) == sorted(WHOLE)
    assert pusher.remote_files().keys() | {".gitattributes"} == WHOLE.keys()
    assert not any(b"hush" in body for body in pusher.server.hub.objects.values())


LINKS = {
    "notes.txt": ".ssh/config",
    "tok.json": ".huggingface/token",
    "sub/up.txt": "../.ENV",
    "two.txt": "steps.txt",
    "steps.txt": ".netrc",
    ".env.example": ".netrc",
    "over.txt": "sub/../.netrc",
    "through.txt": "door/../config",
}


def test_links_to_secrets_are_left_out_and_named(pusher: Pusher) -> None:
    secrets = [".ssh/config", ".huggingface/token", ".ENV", ".netrc"]
    pusher.write(WHOLE | dict.fromkeys([*secrets, ".ssh/in/x"], b"hush"))
    found = [*secrets, ".ssh/in/"]
    (pusher.folder / "sub").mkdir()
    (pusher.folder / "door").symlink_to(".ssh/in")
    for name, target in LINKS.items():
        (pusher.folder / name).symlink_to(target)
    (pusher.folder / "door.txt").symlink_to("README.md")
    (pusher.folder / ".hfignore").write_text("door\n")
    assert left_out(pusher) == sorted([*found, *LINKS])
    pusher.add({"notes.txt": b"old"})
    data = pusher.data("--private")
    assert (data["secrets_left_out"], data["secrets_on_hub"]) == (sorted([*found, *LINKS]), ["notes.txt"])
    assert pusher.remote_files().keys() | {".gitattributes"} == WHOLE.keys() | {".hfignore", "door.txt", "notes.txt"}
    assert not any(b"hush" in body for body in pusher.server.hub.objects.values())


@pytest.mark.parametrize("line", ["!notes.txt", "!.netrc", "!*.txt"])
def test_a_link_to_a_secret_is_pushed_if_the_user_allows_it(pusher: Pusher, line: str) -> None:
    pusher.write({".netrc": b"hush", ".hfignore": line.encode()})
    (pusher.folder / "notes.txt").symlink_to(".netrc")
    pusher.add({})
    pusher.data("--private")
    assert pusher.remote_files()["notes.txt"] == b"hush"


def test_credentials_in_the_hub_address_are_never_printed(pusher: Pusher) -> None:
    pusher.write(WHOLE)
    endpoint = "http://user:hush@127.0.0.1:1/"
    assert pusher.data("--check-only", HF_ENDPOINT=endpoint)["repo_url"] == "http://127.0.0.1:1/org/model"
    for words in (("--check-only",), ("--dry-run",), ("--private", "--create", "--verbose"), ("--dry-run", "--json")):
        outcome = pusher.run(*words, HF_ENDPOINT=endpoint)
        assert "hush" not in outcome.out + outcome.err


def test_plain_output_warns_about_omitted_secrets(pusher: Pusher) -> None:
    pusher.write(WHOLE | {".netrc": b"hush", ".ssh/config": b"hush"})
    expected = (
        "Warning: Not pushed, because they look like secrets: .netrc, .ssh/config. To push one, write !.netrc into"
    )
    for words in (("--dry-run",), ("--private", "--create")):
        assert expected in pusher.run(*words).err
    assert (
        "  warning: .netrc looks like a secret and is not pushed; to push it, write !.netrc"
        in pusher.run("--check-only").out
    )
    (pusher.folder / ".hfignore").write_text("!.netrc\n!.ssh/config\n")
    assert pusher.run("--private").err == ""
    assert {".netrc", ".ssh/config"} <= pusher.remote_files().keys()


def test_other_files_are_not_taken_for_secrets(pusher: Pusher) -> None:
    files = dict.fromkeys(NO_SECRETS, b"") | WHOLE
    pusher.write(files)
    assert left_out(pusher) == []
    pusher.add({})
    pusher.data("--private")
    assert pusher.remote_files().keys() | {".gitattributes"} == files.keys()


@pytest.mark.parametrize(
    ("lines", "pushed"),
    [
        ("!.netrc", {".netrc"}),
        ("!.aws/config", {".aws/config"}),
        ("!.aws/", {".aws/config"}),
        ("!/.aws", {".aws/config"}),
        ("!.aws/\n!.aws/credentials", {".aws/config", ".aws/credentials"}),
        ("!.aws/**", {".aws/config", ".aws/credentials"}),
        ("!.ssh/old/", {".ssh/old/notes"}),
        ("!.huggingface/token", {".huggingface/token"}),
        ("!*.pem\n!.env.*", {"key.pem", ".env.local"}),
        ("# nothing", set()),
    ],
)
def test_a_negated_rule_pushes_a_secret(pusher: Pusher, lines: str, pushed: set[str]) -> None:
    secrets = [
        ".netrc",
        ".aws/config",
        ".aws/credentials",
        ".ssh/old/notes",
        ".ssh/old/id_rsa",
        ".huggingface/token",
        "key.pem",
        ".env.local",
    ]
    pusher.add({})
    pusher.write({"a": b"1", ".hfignore": lines.encode()} | dict.fromkeys(secrets, b"x"))
    data = pusher.data("--private")
    assert pusher.remote_files().keys() - {"a", ".hfignore"} == pushed
    assert not pushed & set(data["secrets_left_out"])


def test_secrets_that_the_user_ignores_are_not_reported(pusher: Pusher) -> None:
    pusher.write(WHOLE | {".env": b"x", ".ssh/config": b"x", ".hfignore": b".env\n.ssh/\n"})
    assert left_out(pusher) == []
    assert "secrets_left_out" not in pusher.data("--dry-run")


@pytest.mark.parametrize("is_here", [True, False])
def test_a_secret_on_the_hub_is_kept_and_named(pusher: Pusher, is_here: bool) -> None:
    pusher.add({"a": b"1", ".netrc": b"old", ".aws/config": b"old", "gone": b"2"})
    pusher.write({"a": b"3"} | ({".netrc": b"new"} if is_here else {}))
    for words in (("--dry-run",), ("--private",)):
        data = pusher.data(*words)
        assert data["secrets_on_hub"] == [".aws/config", ".netrc"]
        assert data["change_summary"] == {"added": 0, "modified": 1, "deleted": 1}
        assert (".netrc" in data.get("secrets_left_out", [])) is is_here
    assert pusher.remote_files() == {"a": b"3", ".netrc": b"old", ".aws/config": b"old"}
    warning = (
        "Warning: These files on the hub look like secrets, and others may be able to read them: .aws/config, .netrc."
    )
    for words in (("--dry-run",), ("--private",)):
        assert warning in pusher.run(*words).err


def test_an_allowed_secret_is_treated_like_any_file(pusher: Pusher) -> None:
    pusher.add({"a": b"1", ".netrc": b"old"})
    pusher.write({"a": b"1", ".hfignore": b"!.netrc\n"})
    assert pusher.data("--dry-run")["deleted_files"] == [".netrc"]
    assert "secrets_on_hub" not in pusher.data("--private")
    assert ".netrc" not in pusher.remote_files()


@pytest.mark.parametrize(
    "name", [*SECRETS, *NO_SECRETS, *litter.WORK_FILES, "a/Thumbs.db", "Icon\r", ".m.icloud", "Icons"]
)
def test_push_and_show_have_the_same_default_rules(name: str) -> None:
    assert Ignore.of("").covers(name) is litter.is_private(name)


def test_the_documentation_lists_every_pattern() -> None:
    quoted = set(re.findall(r"`([^`\n]+)`", DOCUMENT.read_text(encoding="utf-8")))
    patterns = {*litter.TOOLS, *litter.WORK_FILES, *litter.SECRET_FOLDERS, *litter.SECRETS, *litter.NO_SECRETS}
    assert patterns - quoted == set()
