"""`push` in special cases: branches, retries, ignore rules, the log of the library, and unusual hubs."""

from __future__ import annotations

import time

import pytest
from support.hub import Fault
from support.hub.repos import Repo
from support.layouts import weights
from support.pushing import FOLDER, MODEL, Pusher, push_data, push_error

from mlxk2.workspace.ignore import ALWAYS, DEFAULTS

LINE = f"push (alpha): {MODEL}@main — "
UNKNOWN_REVISION = {"x-error-code": "RevisionNotFound", "x-error-message": "Invalid rev id: dev"}


def test_the_first_of_many_unusable_files_are_named(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.write({"a": b"1"})
    for number in range(7):
        (pusher.folder / f"{number}.txt").symlink_to("nowhere")
    message = pusher.error("--dry-run")["message"]
    assert message.startswith("Nothing was pushed: 0.txt is a dangling link, 1.txt is")
    assert message.endswith("4.txt is a dangling link and 2 more.")


# ------------------------------------------------------------------------------------------------------------- branches


def test_push_creates_the_branch_even_without_changes(pusher: Pusher) -> None:
    head = pusher.add({"a": b"1"})
    pusher.write({"a": b"1"})
    data = pusher.data("--private", "--create", "--branch", "dev")
    assert (data["no_changes"], data["created_repo"], data["uploaded_files_count"]) == (True, False, 0)
    assert pusher.repo.branches == {"main": head, "dev": head}


def test_a_new_branch_begins_at_main(pusher: Pusher) -> None:
    head = pusher.add({"a": b"1", "old": b"2"})
    pusher.write({"a": b"1", "new": b"3"})
    data = pusher.data("--private", "--create", "--branch", "dev")
    assert data["change_summary"] == {"added": 1, "modified": 0, "deleted": 1}
    assert pusher.repo.commits[pusher.repo.branches["dev"]].parent == head == pusher.repo.branches["main"]
    assert pusher.remote_files("dev") == pusher.local_files()


def test_push_to_a_missing_branch_is_refused_by_the_hub(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.write({"a": b"2"})
    error = pusher.error("--private", "--branch", "dev")
    assert error["type"] == "upload_failed"
    assert "--create" in error["hint"]
    assert pusher.server.log.count("POST", "/preupload/dev") == 1
    assert set(pusher.repo.branches) == {"main"}


def test_push_creates_repo_and_branch(pusher: Pusher) -> None:
    pusher.write({"a": b"1"})
    data = pusher.data("--private", "--create", "--branch", "dev")
    assert (data["created_repo"], pusher.repo.private) == (True, True)
    assert (pusher.remote_files("dev"), pusher.remote_files()) == ({"a": b"1"}, {})


@pytest.mark.parametrize("part", ["/preupload/dev", "/commit/dev"])
@pytest.mark.parametrize(
    "answer", [(404, UNKNOWN_REVISION), (400, {"x-error-message": "Invalid rev id: dev"})], ids=["404", "400"]
)
def test_push_retry_creates_branch_on_upload_revision_error(
    pusher: Pusher, part: str, answer: tuple[int, dict[str, str]]
) -> None:
    pusher.add({"a": b"1"})
    pusher.write({"a": b"2"})
    pusher.server.faults.add(Fault(part, "POST", status=answer[0], headers=answer[1]))
    data = pusher.data("--private", "--create", "--branch", "dev")
    assert (data["change_summary"]["modified"], pusher.remote_files("dev")) == (1, {"a": b"2"})
    assert pusher.server.log.count("POST", "/branch/dev") == 2
    assert pusher.server.log.count("POST", part) == 2


def test_push_retries_only_once(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.write({"a": b"2"})
    pusher.server.faults.add(Fault("/preupload/", "POST", status=404, headers=UNKNOWN_REVISION, times=9))
    assert pusher.error("--private", "--create", "--branch", "dev")["type"] == "upload_failed"
    assert pusher.server.log.count("POST", "/preupload/") == 2


def test_without_create_push_does_not_create_the_branch(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.write({"a": b"2"})
    pusher.server.faults.add(Fault("/commit/", "POST", status=404, headers=UNKNOWN_REVISION))
    assert pusher.error("--private")["type"] == "upload_failed"
    assert pusher.server.log.count("POST", "/branch/") == 0


# -------------------------------------------------------------------------------------------------------- ignored files


def test_hfignore_is_merged_with_the_defaults_and_forwarded(pusher: Pusher) -> None:
    rules = b"# my notes\n*.ipynb\n/drafts/\n!keep.ipynb\n"
    keep = {"a.txt": b"1", "keep.ipynb": b"2", "sub/drafts/x": b"3", ".hfignore": rules}
    stay = {"b.ipynb": b"4", "drafts/y": b"5", ".DS_Store": b"6", "__pycache__/z.pyc": b"7", ".git/config": b"8"}
    pusher.add({})
    pusher.write(keep | stay)
    data = pusher.data("--private")
    assert pusher.remote_files() == keep
    assert data["local_files_count"] == data["uploaded_files_count"] == len(keep)
    (forwarded,) = pusher.server.hub.ignore_rules
    assert (forwarded or "").splitlines() == [*DEFAULTS, *rules.decode().splitlines(), *ALWAYS]


def test_ignored_files_on_the_hub_are_kept(pusher: Pusher) -> None:
    pusher.add({"notes.ipynb": b"1", "poetry.lock": b"2", "gone.txt": b"3"})
    pusher.write({"a": b"4", ".hfignore": b"*.ipynb"})
    assert pusher.data("--private")["change_summary"]["deleted"] == 1
    assert pusher.remote_files() == {"notes.ipynb": b"1", "poetry.lock": b"2", "a": b"4", ".hfignore": b"*.ipynb"}


def test_gitattributes_of_the_hub_stay_unless_the_folder_has_its_own(pusher: Pusher) -> None:
    pusher.add({".gitattributes": b"made by the hub"})
    pusher.write({"a": b"1"})
    pusher.data("--private")
    assert pusher.repo.commits[pusher.repo.branches["main"]].files[".gitattributes"].data == b"made by the hub"
    pusher.write({".gitattributes": b"my own"})
    assert pusher.data("--private")["change_summary"] == {"added": 0, "modified": 1, "deleted": 0}
    assert pusher.repo.commits[pusher.repo.branches["main"]].files[".gitattributes"].data == b"my own"


# ------------------------------------------------------------------------------------------------------------------ log


def test_the_log_of_the_library_is_part_of_the_data(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.write({"a": b"2", "m.gguf": b"3"})
    pusher.server.faults.add(Fault("/preupload/", "POST", status=503))
    data = push_data(pusher.spawn("--private", "--json", HF_HUB_DISABLE_XET="1"))
    assert [line for line in data["hf_logs"] if "503" in line or "Retrying" in line]


def test_the_log_is_printed_only_with_verbose(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.write({"a": b"1"})
    assert pusher.run("--private", "--json").err == pusher.run("--private").err == ""
    for words in (("--json",), ()):
        outcome = pusher.run("--private", "--verbose", *words)
        assert outcome.err == "No files have been modified since last commit. Skipping to prevent empty commit.\n"
    assert pusher.run("--private", "--verbose", "--json").json["data"] == pusher.data("--private")


def test_a_warning_of_the_library_is_part_of_its_log(pusher: Pusher) -> None:
    pusher.add({})
    pusher.write({"table.parquet": b"1"})
    (line,) = pusher.data("--private")["hf_logs"]
    assert "table.parquet" in line


# --------------------------------------------------------------------------------------------------- concurrent changes


def test_a_branch_that_moves_during_a_push_is_not_overwritten(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.write({"a": b"2"})
    pusher.server.faults.add(Fault("/preupload/", "POST", after=2))
    process = pusher.start("--private", "--json")
    while not pusher.server.log.count("POST", "/preupload/"):
        assert process.poll() is None
        time.sleep(0.01)
    pusher.add({"theirs": b"3"})
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert '"upload_failed"' in out
    assert "somebody else" in out
    assert pusher.remote_files() == {"a": b"1", "theirs": b"3"}


def test_the_message_says_that_the_repo_is_public(pusher: Pusher) -> None:
    pusher.add({}, private=False)
    pusher.write({"a": b"1"})
    assert pusher.data("--private")["message"] == "Pushed: +1 ~0 -0; the repo is public"


def test_a_gated_repo_of_another_user_is_not_created_anew(pusher: Pusher) -> None:
    pusher.server.hub.repos[MODEL] = Repo(MODEL, gated=True)
    pusher.server.add(MODEL, {"a": b"1"}, gated=True)
    pusher.write({"a": b"2"})
    error = pusher.error("--private", "--create", HF_TOKEN=pusher.server.token("stranger"))
    assert error["type"] == "upload_failed"
    assert pusher.remote_files() == {"a": b"1"}


# -------------------------------------------------------------------------------------------------------- unusual hubs


@pytest.mark.parametrize("status", [404, 405])
def test_a_hub_without_xet_gets_an_upload_over_http(pusher: Pusher, status: int) -> None:
    pusher.add({})
    pusher.write({"model.safetensors": weights()})
    pusher.server.faults.add(Fault("/xet-write-token/", status=status, times=9))
    push_data(pusher.spawn("--private", "--json"))
    assert pusher.remote_files() == {"model.safetensors": weights()}
    assert pusher.server.log.count("PUT", "/upload/") == 1


def test_a_hub_without_xet_does_not_affect_later_pushes(pusher: Pusher) -> None:
    pusher.add({})
    pusher.write({"model.safetensors": weights()})
    pusher.server.faults.add(Fault("/xet-write-token/", status=404, times=9))
    pusher.data("--private")
    pusher.server.faults.clear()
    pusher.server.log.clear()
    pusher.write({"model.safetensors": weights("F32")})
    pusher.data("--private")
    assert pusher.server.log.count("GET", "/xet-write-token/") > 0
    assert pusher.server.log.count("PUT", "/upload/") == 0


def test_a_hub_that_forbids_xet_is_an_error(pusher: Pusher) -> None:
    pusher.add({})
    pusher.write({"model.safetensors": weights()})
    pusher.server.faults.add(Fault("/xet-write-token/", status=403, times=9))
    assert pusher.error("--private")["type"] == "upload_failed"
    assert pusher.remote_files() == {}


def test_a_model_card_is_validated_before_the_weights_are_uploaded(pusher: Pusher) -> None:
    pusher.add({})
    pusher.write({"README.md": b"---\n!invalid\n---\n", "model.safetensors": weights()})
    error = push_error(pusher.spawn("--private", "--json", HF_HUB_DISABLE_XET="1"))
    assert error["type"] == "upload_failed"
    assert "README.md" in error["message"]
    assert pusher.server.log.count("POST", "/preupload/") == 0


def test_a_model_card_that_is_not_utf8_is_refused(pusher: Pusher) -> None:
    pusher.add({})
    pusher.write({"README.md": b"\xff\xfe"})
    message = pusher.error("--private")["message"]
    assert message == "README.md is not UTF-8: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte."


def test_a_token_in_the_message_of_the_hub_is_removed(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.write({"a": b"2"})
    said = {"x-error-message": f"the token {pusher.token} may not"}
    pusher.server.faults.add(Fault("/commit/", "POST", status=403, headers=said))
    assert "(403: the token may not)" in pusher.error("--private")["message"]


def test_plain_output_says_that_the_push_failed(pusher: Pusher) -> None:
    pusher.add({"a": b"1"})
    pusher.write({"a": b"2"})
    pusher.server.faults.add(Fault("/commit/", "POST", status=403))
    outcome = pusher.run("--private")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("Error: The hub forbids the upload to org/model (403")
    assert FOLDER not in outcome.out
