import io
import sys

from forec_jax import progress
from forec_jax.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, monkeypatch, seconds=1.0, steps=100):
    """What a bar writes to a stream, when each step takes so long; a line is printed above it in the middle."""
    now = 0.0
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    bar = progress_bar(total=steps, mininterval=0.5, bar_format="step {n_fmt}/{total_fmt}")
    bar.start_t, bar.last_print_t, bar._time = now, now, lambda: now
    for step in range(1, steps + 1):
        now = step * seconds
        bar.update(1)
        if step == 50:
            bar.write("half of it", file=bar.fp)
    bar.close()
    return stream.getvalue()


def test_a_file_gets_a_line_every_half_minute_and_nothing_that_goes_back_in_it(monkeypatch):
    text = shown(io.StringIO(), monkeypatch)
    assert "\r" not in text
    steps = [int(line.split()[1].split("/")[0]) for line in text.splitlines() if line.startswith("step")]
    assert steps[0] == 0
    assert steps[-1] == 100
    assert 3 <= len(set(steps)) <= 6  # 100 seconds
    assert text.splitlines().count("half of it") == 1
    assert "" not in text.splitlines()


def test_on_a_terminal_the_bar_is_drawn_over(monkeypatch):
    text = shown(Terminal(), monkeypatch)
    assert text.count("\rstep") > 50
    assert "half of it\n" in text
