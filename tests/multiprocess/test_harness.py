"""What the other tests here rest on: who survives whom, and that a failure shows itself."""

import signal
import time

import pytest
from processes import HEARTBEAT_TIMEOUT_S, Job, run

# No collectives: the loser is lost between two words of the script.
SURVIVOR = """
jax.devices()
print("up")
if rank == int(sys.argv[1]):
    sys.stdin.read()
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    assert jax.jit(lambda x: x + 1)(1.0) == 2
    time.sleep(0.5)
print("survived")
"""


@pytest.mark.parametrize(
    ("how", "lost"),
    [
        (signal.SIGKILL, 0),
        (signal.SIGSTOP, 1),
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.exhaustive),
    ],
)
def test_survivors_outlive_a_lost_process_and_its_heartbeats(lost: int, how: int) -> None:
    alive_s = 3 * HEARTBEAT_TIMEOUT_S
    with Job(SURVIVOR, str(lost), str(alive_s), processes=3, survives=True) as job:
        for rank in range(3):
            job.wait_for(rank, "up")
        start = time.monotonic()
        job.send(lost, how)
        ended = -signal.SIGKILL if how == signal.SIGKILL else None
        printed = job.finish(exit_codes={lost: ended})  # type: ignore[dict-item]
    assert time.monotonic() - start > 2 * HEARTBEAT_TIMEOUT_S
    assert all("survived" in printed[rank] for rank in range(3) if rank != lost)


def test_without_these_settings_survivors_are_ended() -> None:
    """If this fails, JAX has changed for the better, and the settings can go."""
    with Job(SURVIVOR, "1", "60", processes=2, heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S) as job:
        for rank in range(2):
            job.wait_for(rank, "up")
        job.send(1, signal.SIGKILL)
        job.finish(exit_codes={0: -signal.SIGABRT, 1: -signal.SIGKILL})


def test_a_resumed_process_goes_on_or_is_ended_but_disturbs_nobody() -> None:
    with Job(SURVIVOR, "1", str(4 * HEARTBEAT_TIMEOUT_S), processes=2, survives=True) as job:
        for rank in range(2):
            job.wait_for(rank, "up")
        job.send(1, signal.SIGSTOP)
        time.sleep(2 * HEARTBEAT_TIMEOUT_S)  # until its heartbeats are missed
        job.send(1, signal.SIGCONT)
        printed = job.finish(exit_codes={1: None})  # type: ignore[dict-item]
    assert "survived" in printed[0]


def test_ranks_have_their_devices_arguments_and_environment() -> None:
    printed = run(
        """
        print(rank, processes, jax.local_device_count(), jax.device_count(), sys.argv[1:],
              os.environ.get("EXTRA"))
        """,
        "word",
        processes=3,
        devices=[1, 2, 3],
        environment={"EXTRA": "all"},
        rank_environment={2: {"EXTRA": "two"}},
    )
    for rank, text in enumerate(printed):
        extra = "two" if rank == 2 else "all"
        assert f"{rank} 3 {rank + 1} 6 ['word'] {extra}" in text


def test_a_failure_shows_what_every_rank_printed() -> None:
    script = """
    print("rank", rank, "was here")
    if rank == 1:
        os._exit(3)
    sys.stdin.read()
    """
    start = time.monotonic()
    with pytest.raises(AssertionError, match="exit codes") as caught, Job(script, processes=2) as j:
        j.finish()
    assert "rank 0 was here" in str(caught.value)
    assert "--- rank 1: exit code 3" in str(caught.value)
    assert time.monotonic() - start < 30


def test_a_hang_ends_with_what_every_rank_printed() -> None:
    script = "print('here', rank); sys.stdin.read()"
    with (
        pytest.raises(AssertionError, match=r"still ran after 6 s[^$]*here 0[^$]*here 1"),
        Job(script, processes=2, timeout_s=6) as job,
    ):
        job.finish()


def test_a_late_rank_is_waited_for() -> None:
    with Job("print('together')", processes=2, start_late_s={0: 4}) as job:
        assert all("together" in text for text in job.finish())
