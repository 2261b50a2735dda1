"""The job runner with a worker that misbehaves: progress, cancel, crash, kill, restart, and no process or file left."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import alive

from MLILib.errors import BadInput, Cancelled, MLIError, WorkerFailed
from MLISlicerLib.job_folder import JobFolder
from MLISlicerLib.jobs import Call, JobRunner, Point, Status
from MLISlicerLib.process import WorkerProcess, start_worker

FAKE = str(Path(__file__).with_name("fake_worker.py"))
posix = pytest.mark.skipif(os.name != "posix", reason="process groups and signals are POSIX")


class Timer:
    """A timer that never fires by itself: the tests turn the runner by hand."""

    def connect(self, signal, slot):
        assert signal == "timeout()"

    def start(self, milliseconds):
        self.active = True

    def stop(self):
        self.active = False


def fake(*arguments):
    return WorkerProcess([sys.executable, FAKE, *arguments])


def launched():
    """A worker behind a launcher that waits for its child, as PythonSlicer does."""
    launcher = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, sys.argv[1]]))"
    return WorkerProcess([sys.executable, "-c", launcher, FAKE])


@pytest.fixture
def runner():
    made = JobRunner(fake, timer=Timer, process_events=lambda: None)
    yield made
    made.close()


def call(task, **settings):
    def steps():
        return (yield Call(task, settings))

    return steps()


def turn_until(runner, condition, seconds=10.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        runner.tick()
        time.sleep(0.005)


class TestCalls:
    def test_the_answer_comes_back_into_the_steps(self, runner):
        assert runner.run(call("echo", a=1, b=[2.5, "ü"]))["request"] == {"a": 1, "b": [2.5, "ü"]}

    def test_progress_is_relayed_in_order(self, runner):
        seen = []
        runner.run(call("echo"), progress=seen.append)
        assert Status("Echoing", 0.5, 1.5) in seen
        assert seen[-1] == Status("Echoing", 0.5, 1.5, "half way")
        assert seen.index(Status("Echoing", 0.0)) < seen.index(Status("Echoing", 0.5, 1.5))

    def test_a_curve_is_relayed_whole_over_all_stages(self, runner, tmp_path):
        files = {"fixed": str(tmp_path / "fixed.nrrd"), "transform": str(tmp_path / "result.tfm")}
        (tmp_path / "fixed.nrrd").write_bytes(b"NRRD0005\ntype: uint8\nsizes: 1 1 1\n\n\0")
        seen = []
        runner.run(call("register", **files, seed=0), progress=seen.append)
        curve = seen[-1].curve
        assert [(p.level, p.iteration) for p in curve] == [(level, i) for level in (1, 2) for i in range(10)]
        assert curve[0] == Point("Rigid", 1, 0, 1.0)

    def test_pictures_of_a_training_are_relayed_and_told_apart(self, runner):
        seen = []
        runner.run(call("draw", pictures=["a.png", "a.png"]), progress=seen.append)
        assert [status.samples for status in seen if status.samples[0]] == [("a.png", 1), ("a.png", 2), ("a.png", 2)]

    def test_the_worker_is_kept_for_the_next_job(self, runner):
        first, second = (runner.run(call("echo"))["pid"] for _ in range(2))
        assert first == second

    def test_an_error_is_raised_where_the_steps_asked(self, runner):
        def steps():
            try:
                yield Call("bad", {})
            except BadInput as error:
                return error.cause

        assert runner.run(steps()) == "Because."

    def test_an_error_keeps_its_three_sentences(self, runner):
        with pytest.raises(BadInput) as caught:
            runner.run(call("bad"))
        assert (caught.value.what, caught.value.remedy) == ("It is bad.", "Give another.")

    def test_two_jobs_share_the_worker_one_after_the_other(self, runner):
        done = []
        for name in ("first", "second"):
            runner.start(call("echo", name=name), done=lambda result: done.append(result["request"]["name"]))
        turn_until(runner, lambda: len(done) == 2)
        assert done == ["first", "second"]

    def test_much_output_does_not_stop_the_worker(self, runner):
        assert runner.run(call("flood")) == {"lines": 20000}

    def test_a_line_that_is_no_event_is_kept_for_errors(self, runner):
        runner.run(call("chatter"))
        assert "a library prints here" in runner.worker.last_lines

    def test_the_real_worker_answers(self):
        runner = JobRunner(start_worker, timer=Timer, process_events=lambda: None)
        try:
            with pytest.raises(BadInput, match="no task 'nonsense'"):
                runner.run(call("nonsense"))
            assert runner.worker.hello["pgid"] == runner.worker.hello["pid"]
        finally:
            runner.close()


class TestSteps:
    def test_a_bug_is_told_and_not_swallowed(self, runner, caplog):
        def steps():
            yield None
            raise ZeroDivisionError("oops")

        with pytest.raises(MLIError, match="ZeroDivisionError: oops"):
            runner.run(steps())
        assert "ZeroDivisionError" in caplog.text

    def test_a_bug_carries_where_it_happened(self, runner):
        def steps():
            yield None
            raise ZeroDivisionError("oops")

        with pytest.raises(MLIError) as caught:
            runner.run(steps())
        assert "in steps" in caught.value.__notes__[0]

    @pytest.mark.alone
    def test_the_event_loop_gets_its_turn_between_short_pieces(self, runner):
        def steps():
            for _ in range(100):
                time.sleep(0.005)
                yield None

        job = runner.start(steps())
        longest = 0.0
        while not job.finished:
            begin = time.monotonic()
            runner.tick()
            longest = max(longest, time.monotonic() - begin)
        assert longest < 0.1

    def test_a_callback_may_turn_the_runner(self, runner):
        """A dialog in a callback runs an event loop of its own, and with it the timer."""
        later = []
        runner.start(call("echo"), done=lambda _: turn_until(runner, lambda: bool(later)))
        runner.start(call("echo"), done=later.append)
        turn_until(runner, lambda: not runner.jobs)
        assert len(later) == 1


@posix
class TestFailures:
    def test_a_crash_quotes_the_last_lines(self, runner):
        with pytest.raises(WorkerFailed) as caught:
            runner.run(call("crash"))
        assert "code 3" in caught.value.what
        assert "first line\nSegmentation something" in caught.value.cause
        assert caught.value.remedy

    def test_an_exit_without_an_answer_is_an_error(self, runner):
        with pytest.raises(WorkerFailed, match="code 0"):
            runner.run(call("silent exit"))

    def test_a_kill_by_the_system_speaks_of_memory(self, runner):
        with pytest.raises(WorkerFailed, match="ran out of memory"):
            runner.run(call("killed"))

    def test_a_worker_that_has_no_memory_left_says_so(self):
        """Done for real, under a limit of half a gigabyte."""
        limited = ["sh", "-c", 'ulimit -v 500000; exec "$0" "$1"', sys.executable, FAKE]
        runner = JobRunner(lambda: WorkerProcess(limited), timer=Timer, process_events=lambda: None)
        with pytest.raises(WorkerFailed, match="ran out of memory") as caught:
            runner.run(call("eat"))
        assert "MemoryError" in caught.value.cause
        assert "smaller tile" in caught.value.remedy

    def test_the_next_job_gets_a_fresh_worker(self, runner):
        before = runner.run(call("echo"))["pid"]
        with pytest.raises(WorkerFailed):
            runner.run(call("crash"))
        assert runner.run(call("echo"))["pid"] != before

    def test_a_worker_that_died_while_idle_is_replaced(self, runner):
        pid = runner.run(call("echo"))["pid"]
        os.kill(pid, 9)
        assert runner.run(call("echo"))["pid"] != pid

    def test_a_program_that_cannot_start_is_an_error(self):
        runner = JobRunner(lambda: WorkerProcess(["/no/such/python"]), timer=Timer, process_events=lambda: None)
        with pytest.raises(WorkerFailed, match="could not be started"):
            runner.run(call("echo"))

    def test_a_launcher_that_is_killed_takes_its_child_along(self):
        runner = JobRunner(launched, timer=Timer, process_events=lambda: None)
        job = runner.start(call("sleep"))
        turn_until(runner, lambda: job.status.stage == "Sleeping")
        child = runner.worker.hello["pid"]
        os.kill(runner.worker.pid, 9)
        turn_until(runner, lambda: job.finished)
        assert isinstance(job.error, WorkerFailed)
        assert not alive(child)


@posix
class TestCancel:
    @pytest.mark.parametrize("start", [fake, launched])
    def test_the_whole_process_tree_is_gone_within_two_seconds(self, start):
        runner = JobRunner(start, timer=Timer, process_events=lambda: None)
        job = runner.start(call("children"))
        turn_until(runner, lambda: " " in job.status.stage and job.status.stage[0].isdigit())
        pids = [runner.worker.pid, *(int(pid) for pid in job.status.stage.split())]
        assert all(alive(pid) for pid in pids)
        begin = time.monotonic()
        runner.cancel(job)
        turn_until(runner, lambda: job.finished)
        took = time.monotonic() - begin
        assert job.state == "cancelled"
        assert not any(alive(pid) for pid in pids)
        assert took < 2.0

    def test_a_worker_that_has_not_said_hello_is_ended_too(self):
        runner = JobRunner(lambda: fake("stay"), timer=Timer, process_events=lambda: None)
        job = runner.start(call("echo"))
        turn_until(runner, lambda: runner.worker is not None)
        pid = runner.worker.pid
        runner.cancel(job)
        turn_until(runner, lambda: job.finished, seconds=2.0)
        assert not alive(pid)

    def test_cancel_tidies_up_and_tells_once(self, runner, tmp_path):
        told = []

        def steps():
            with JobFolder(tmp_path) as folder:
                (folder / "big").write_bytes(b"0" * 1000)
                yield Call("sleep", {})

        job = runner.start(steps(), cancelled=lambda: told.append("cancelled"), done=told.append, failed=told.append)
        turn_until(runner, lambda: job.status.stage == "Sleeping")
        assert list(tmp_path.iterdir())
        runner.cancel(job)
        runner.cancel(job)
        turn_until(runner, lambda: bool(told))
        assert told == ["cancelled"]
        assert job.finished
        assert not list(tmp_path.iterdir())

    def test_cancel_before_the_worker_is_asked_keeps_it(self, runner):
        pid = runner.run(call("echo"))["pid"]

        def steps():
            while True:
                yield None

        job = runner.start(steps())
        runner.tick()
        runner.cancel(job)
        turn_until(runner, lambda: job.finished)
        assert runner.run(call("echo"))["pid"] == pid

    def test_a_waiting_job_goes_on_with_a_fresh_worker(self, runner):
        first, done = runner.start(call("sleep")), []
        turn_until(runner, lambda: first.status.stage == "Sleeping")
        runner.start(call("echo"), done=done.append)
        runner.tick()
        runner.cancel(first)
        turn_until(runner, lambda: bool(done))
        assert first.state == "cancelled"

    def test_closing_ends_everything(self, tmp_path):
        runner = JobRunner(fake, timer=Timer, process_events=lambda: None)

        def steps():
            with JobFolder(tmp_path):
                yield Call("sleep", {})

        job = runner.start(steps())
        turn_until(runner, lambda: job.status.stage == "Sleeping")
        pid = runner.worker.pid
        runner.close()
        assert not alive(pid)
        assert isinstance(job.error, Cancelled)
        assert not list(tmp_path.iterdir())

    def test_the_worker_does_not_outlive_its_starter(self, tmp_path):
        """The end of its input ends the real worker, also when nobody could kill it: here the starter is killed."""
        code = (
            "import time; from MLISlicerLib.process import start_worker\n"
            "w = start_worker()\n"
            "while w.hello is None: w.events(); time.sleep(0.01)\n"
            "print(w.hello['pid'], flush=True); time.sleep(600)"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True)
        pid = int(starter.stdout.readline())
        starter.kill()
        starter.wait()
        limit = time.monotonic() + 5.0
        while alive(pid) and time.monotonic() < limit:
            time.sleep(0.02)
        assert not alive(pid)


class TestJobFolder:
    def test_it_goes_with_an_error(self, tmp_path):
        def fail():
            with JobFolder(tmp_path) as folder:
                (folder / "file").write_text("x", encoding="utf-8")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert not list(tmp_path.iterdir())

    def test_what_a_crash_left_behind_goes_with_the_next_job(self, tmp_path):
        old = tmp_path / "mli-job-old"
        old.mkdir()
        long_ago = time.time() - 3 * 86400
        os.utime(old, (long_ago, long_ago))
        (tmp_path / "mli-job-young").mkdir()
        with JobFolder(tmp_path):
            assert not old.exists()
            assert (tmp_path / "mli-job-young").exists()

    def test_no_room_for_it_is_a_sentence(self, tmp_path):
        with pytest.raises(BadInput, match="No temporary folder"), JobFolder(tmp_path / "missing"):
            pass
