"""The tests' own listener: no subscription goes behind its executor's back; deaf, it says so."""

import threading

import pytest
from sensor_msgs.msg import Image
from support.system import Listener, random_domain


def test_a_listener_destroys_subscriptions_between_two_callbacks(monkeypatch):
    with Listener(random_domain()) as listener:
        received = listener.hear_later("/image", Image)
        destroy, threads = listener.node.destroy_subscription, []

        def destroy_here(subscription):
            threads.append(threading.current_thread())
            return destroy(subscription)

        monkeypatch.setattr(listener.node, "destroy_subscription", destroy_here)
        listener.forget(received)
        assert threads == [listener.thread]
        assert listener.node.get_subscriptions_info_by_topic("/image") == []


def test_a_listener_that_failed_says_so_at_once():
    with Listener(random_domain()) as listener:
        with pytest.raises(ZeroDivisionError):
            listener.in_executor(lambda: 1 / 0)
        with pytest.raises(RuntimeError, match="hears nothing any more") as raised:
            listener.next_status()
        assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_domain_comes_again_only_after_all_others():
    domains = [random_domain() for _ in range(20)]
    assert len(set(domains)) == 20
    assert random_domain() == domains[0]
    assert all(0 <= domain <= 101 for domain in domains)
