"""Who is lost, by what the witnesses say and when."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from nexa_dist.plan.health import lost
from nexa_dist.plan.health.lost import Bench, CloudWord, PeerWord


@dataclass
class Scene:
    """A run of two nodes of which n1 is silent from second 0 on, told of and asked about every two seconds."""

    bench: Bench = field(default_factory=lambda: Bench(["n0", "n1"]))
    at: float = 0.0

    def until(
        self,
        end: float,
        cloud: CloudWord = "runs",
        peer: PeerWord = "mute",
        n0: bool = True,
        own: PeerWord = "cut",
        hung_up: bool = False,
    ) -> str:
        """The kinds of verdict for n1, one after the other, until second `end`. `n0`: whether we hear it."""
        kinds: list[str] = []
        while self.at < end:
            self.at += 2
            self.bench.quiet("n1", self.at, self.at, hung_up)
            if n0:
                self.bench.heard("n0")
            else:
                self.bench.quiet("n0", self.at, self.at)
            if self.at % 4 == 0:
                self.bench.cloud("n1", cloud, f"it is {cloud}", self.at)
                self.bench.peer("n1", "", own, self.at)
                self.bench.peer("n1", "n0", peer, self.at)
            kinds.append(self.bench.judge("n1", self.at).kind)
        return " ".join(kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind)


def test_the_cloud_that_says_so_is_believed_at_once() -> None:
    scene = Scene()
    assert scene.until(10, cloud="off") == "here lost"
    assert scene.bench.judge("n1", scene.at).why == "it is off"


def test_a_word_of_before_the_silence_says_nothing_of_it() -> None:
    bench = Bench(["n0", "n1"])
    bench.cloud("n1", "off", "it is off", 0.0)
    bench.quiet("n1", 5.0, 10.0)
    assert bench.judge("n1", 10.0).kind == "wait"


@pytest.mark.parametrize("n0", [True, False])
def test_a_node_that_another_one_reaches_is_never_lost(n0: bool) -> None:
    assert Scene().until(10_000, peer="reached", n0=n0) == "here wait"
    assert Scene().until(10_000, cloud="unwell", peer="reached", n0=n0) == "here wait"


def test_another_node_that_cannot_reach_it_either_is_a_witness_once_a_partition_had_time_to_heal() -> None:
    scene = Scene()
    assert scene.until(lost.CUT_AFTER_S, peer="cut") == "here wait"
    assert scene.until(lost.CUT_AFTER_S + 2, peer="cut") == "lost"
    assert "n0 cannot reach it either" in scene.bench.judge("n1", scene.at).why


def test_a_node_that_hung_up_and_that_no_other_holds_a_connection_with_has_ended_what_it_ran() -> None:
    scene = Scene()
    assert scene.until(lost.ENDED_AFTER_S, peer="cut", hung_up=True) == "here wait"
    assert scene.until(lost.ENDED_AFTER_S + 2, peer="cut", hung_up=True) == "ended"
    assert "closed its connections, and n0 cannot" in scene.bench.judge("n1", scene.at).why
    assert scene.until(lost.CUT_AFTER_S, peer="cut", hung_up=True) == "ended"  # it may be rebooting
    assert scene.until(lost.CUT_AFTER_S + 2, peer="cut", hung_up=True) == "lost"


@pytest.mark.parametrize("peer", ["held", "up", "", "mute", "reached"])
def test_a_connection_of_ours_that_was_reset_is_no_end_of_the_node(peer: PeerWord) -> None:
    assert Scene().until(lost.CUT_AFTER_S, peer=peer, hung_up=True) == "here wait"
    assert Scene().until(lost.CUT_AFTER_S, peer=peer, n0=False, hung_up=True) in ("here wait", "here line")


def test_a_silence_in_which_a_connection_was_let_go_of_is_one_silence() -> None:
    scene = Scene()
    scene.until(16, peer="held")
    assert scene.until(lost.CUT_AFTER_S + 2, peer="cut") == "wait lost"


def test_one_bad_probe_is_no_witness() -> None:
    scene = Scene()
    scene.until(40, peer="")
    assert scene.until(44, peer="cut") == "wait"  # said once
    assert scene.until(48, peer="up") == "wait"
    assert scene.until(52, peer="cut") == "wait"  # and again from the beginning


@pytest.mark.parametrize("peer", ["up", "", "mute"])
def test_a_machine_whose_sshd_is_busy_or_that_nobody_can_ask_about_is_waited_for(peer: PeerWord) -> None:
    assert Scene().until(600, peer=peer) == "here wait"


def test_what_is_seen_at_work_is_not_lost_because_its_network_is() -> None:
    assert Scene().until(600, cloud="works", peer="cut") == "here wait"


def test_a_status_check_that_flaps_is_none_and_one_that_stays_is() -> None:
    scene, kinds = Scene(), ""
    for end in range(8, 160, 8):
        kinds += scene.until(end - 4, cloud="unwell") + scene.until(end, cloud="runs")
    assert "lost" not in kinds
    assert scene.until(scene.at + lost.DOUBTFUL_S + 8, cloud="unwell") == "wait lost"
    assert Scene().until(lost.ALONE_S, cloud="forgotten", n0=False) == "here line"
    assert Scene().until(lost.ALONE_S + 8, cloud="forgotten", n0=False) == "here line lost"


@pytest.mark.parametrize("cloud", ["runs", "works", ""])
def test_no_node_answers_so_it_is_our_line_however_long(cloud: CloudWord) -> None:
    assert Scene().until(100_000, cloud=cloud, n0=False) == "here line"


def test_a_line_that_was_down_is_no_silence_of_the_node_that_comes_back_last() -> None:
    scene = Scene()
    scene.until(3 * lost.LOST_AFTER_S, n0=False)
    assert scene.until(3 * lost.LOST_AFTER_S + 600) == "wait"
    assert scene.until(4 * lost.LOST_AFTER_S + 10) == "wait lost"


def test_the_user_sets_how_long_silence_alone_is_borne() -> None:
    scene = Scene(Bench(["n0", "n1"], 120.0))
    assert scene.until(120) == "here wait"
    assert scene.until(124) == "lost"
    assert Scene(Bench(["n0", "n1"], 120.0)).until(130, n0=False) == "here line lost"
    # Neither the cloud nor a node answers: nothing says that our line is up.
    assert Scene(Bench(["n0", "n1"], 120.0)).until(4000, cloud="", n0=False) == "here line"


def test_a_node_whose_agent_is_through_is_no_witness_of_our_line() -> None:
    scene = Scene()
    scene.bench.heard("n0", over=True)
    scene.bench.quiet("n1", 9.0, 9.0)
    assert scene.bench.judge("n1", 9.0).kind == "line"
