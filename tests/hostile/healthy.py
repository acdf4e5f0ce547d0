"""The session that must notice nothing: it writes, reads back and compares, in a process of its own."""
import multiprocessing
import random
import time
import traceback

import initiator

BLOCKS = 8192
NAME = "iqn.2026-01.io.pollux:healthy"


def pattern(lba, count, generation):
    return b"".join((b"%012d:%019d\n" % (lba + at, generation)).ljust(64, b"#") * 8 for at in range(count))


def work(port, target, lun, pipe):
    """Runs until told to stop; answers each `check` with what happened since the one before."""
    rng = random.Random(4711)
    errors, slowest, done = [], 0.0, 0
    written = {}
    generation = lost = 0
    session = None
    while True:
        if pipe.poll():
            request = pipe.recv()
            pipe.send({"errors": errors, "slowest": slowest, "done": done, "unit_attentions": session.unit_attentions if session else 0, "lost": session.lost - lost if session else 0})
            lost = session.lost if session else 0
            if request == "stop":
                return
            errors, slowest, done = [], 0.0, 0
        started = time.monotonic()
        try:
            if session is None:
                session = initiator.Session(port, target, NAME, b"\x80healt", timeout=5).login().ready(lun)
            generation += 1
            count = rng.choice((1, 2, 8, 64, 300))
            lba = rng.randrange(BLOCKS - count)
            session.write_blocks(lba, pattern(lba, count, generation), lun, immediate_data=rng.choice((0, 512)))
            for block in range(lba, lba + count):
                written[block] = generation
            count = rng.choice((1, 8, 128))
            lba = rng.choice((lba, rng.randrange(BLOCKS - count)))
            lba = min(lba, BLOCKS - count)
            data = session.read_blocks(lba, count, lun)
            assert len(data) == count * 512, "a read came back short"
            for block in range(lba, lba + count):
                at = (block - lba) * 512
                if block in written and data[at : at + 512] != pattern(block, 1, written[block]):
                    raise AssertionError(f"data miscompare in block {block}: {data[at : at + 64]!r}, not generation {written[block]}")
            done += 1
        except Exception:  # whatever it is, it is a disturbance
            errors.append(traceback.format_exc(limit=3))
            if session:
                session.close()
            session, lost = None, 0
            # What was written last is in doubt.
            written.clear()
            time.sleep(0.2)
        slowest = max(slowest, time.monotonic() - started)
        time.sleep(0.002)


class Healthy:
    """The healthy session's process."""

    def __init__(self, port, target, lun):
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=work, args=(port, target, lun, other), daemon=True)
        self.process.start()
        other.close()

    def ask(self, what):
        self.pipe.send(what)
        if not self.pipe.poll(30):
            return {"errors": ["the healthy session hangs"], "slowest": 30.0, "done": 0, "unit_attentions": 0, "lost": 0}
        return self.pipe.recv()

    def check(self):
        return self.ask("check")

    def stop(self):
        if self.process.is_alive():
            try:
                self.ask("stop")
            except OSError:
                pass
            self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
