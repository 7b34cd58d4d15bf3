"""What a training run leaves as it was."""

import os
import signal

import pytest

from jobs.train import stopping_on_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("error", [None, RuntimeError("a part died")])
def test_signals_stop_a_run_and_do_what_they_did_before_when_it_is_over(number, error, capsys):
    before = [signal.getsignal(each) for each in SIGNALS]
    try:
        with stopping_on_signals() as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), number)
            assert stop.is_set() and "stopping after this step" in capsys.readouterr().out
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
            if error:
                raise error
    except RuntimeError as raised:
        assert raised is error
    assert [signal.getsignal(each) for each in SIGNALS] == before
