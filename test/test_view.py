"""`magicfuse view` in a real Chromium: what a user sees, and that looking slows nothing down."""

import asyncio
import contextlib
import json
import os
import queue
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import cv2
import numpy as np
import pytest
from rclpy.serialization import serialize_message
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from std_msgs.msg import Header
from support.messages import encode_image
from support.noop_node import NoopEngine
from support.system import ROOT, CameraProcess, FuseNodeProcess, random_domain, rgb
from support.videos import write_video

from magicfuse_ros.bags.reader import Topic
from magicfuse_ros.bags.writer import BagWriter
from magicfuse_ros.cli import main
from magicfuse_ros.resources import sample_video
from magicfuse_ros.runtime.contract import EngineError, EngineSettings
from magicfuse_ros.sources import webcam
from magicfuse_ros.sources.frame import Frame, SourceError
from magicfuse_ros.sources.source import open_source
from magicfuse_ros.view.engine_show import EngineShow
from magicfuse_ros.view.feeds import BagClip, Playback, live_camera
from magicfuse_ros.view.node_show import NodeShow
from magicfuse_ros.view.ros_topics import LiveTopic
from magicfuse_ros.view.server import IN_FLIGHT, PageServer, ServeError
from magicfuse_ros.view.shot import PICTURES, Shot

PATIENCE_S = 30.0
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --window-size=900,640"
)
NO_BROWSER = "there is no Chromium with its driver: apt install chromium chromium-driver"


@pytest.fixture(scope="module")
def browser():
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        assert not os.environ.get("MAGICFUSE_NEEDS_BROWSER"), NO_BROWSER
        pytest.skip(NO_BROWSER)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in FLAGS.split():
        options.add_argument(flag)
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as started:
        yield started


class Served:
    """A show and its page, served by this process."""

    def __init__(self, show, port=0):
        self.show, self.stop, addresses = show, threading.Event(), queue.Queue()
        server = PageServer(show, "127.0.0.1", port)
        self.thread = threading.Thread(target=server.run, args=(self.stop, addresses.put))
        self.thread.start()
        self.address = addresses.get(timeout=PATIENCE_S)

    def end(self):
        self.stop.set()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


@pytest.fixture
def serve():
    served = []

    def start(show, port=0):
        served.append(Served(show, port))
        return served[-1]

    yield start
    for each in served:
        each.end()
        each.show.close()


class TunedEngine(NoopEngine):
    """The darker MagImg is, the smaller τ is."""

    def __init__(self, settings=None, progress=None, delay_s=0.0):
        super().__init__(settings or EngineSettings(), progress)
        self.tau, self.frames, self.delay_s = 1.0, 0, delay_s

    def update(self, *, steps, tau, seed, temporal):  # noqa: ARG002
        if tau is not None and not tau <= 1.0:
            raise EngineError(f"tau is {tau!r}; accepted: 0.0 to 1.0")
        self.tau, self.temporal = 1.0 if tau is None else tau, temporal

    def fuse(self, frame, extras=frozenset(), *, wait=True):
        self.frames += 1
        result = super().fuse(frame, extras, wait=wait)
        return type(result)(**vars(result) | {"magimg": (frame * self.tau).astype(np.uint8)})


def picture(index):
    shade = np.full((48, 64, 3), 60 + index * 7 % 190, np.uint8)
    shade[:, index % 60 : index % 60 + 4] = 255
    return shade


def camera(rate=12.0, *, frames=10**9, fault=""):
    """Return a live feed of moving pictures, which stops after some and then says why."""

    def read():
        for index in range(frames):
            yield Frame(str(index), 0, picture(index))
            time.sleep(1.0 / rate)
        raise SourceError(fault)

    return live_camera("camera 7", read)


def clip(folder, count=60):
    return Playback(
        "street.mp4",
        open_source(write_video(folder / "street.mp4", [index / 20 for index in range(count)])),
    )


def engine_show(feed, **options):
    engine = TunedEngine(**options)
    return EngineShow(feed, lambda _progress: engine), engine


class Page:
    """What the tests read of the page, and do on it."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)

    def text(self, name):
        return self.browser.find_element(By.ID, name).text

    def click(self, name):
        self.browser.find_element(By.ID, name).click()

    def canvas(self, name):
        script = f"return document.querySelector('canvas[data-name={name}]').toDataURL()"
        return self.browser.execute_script(script)

    def brightness(self, name):
        script = f"""const canvas = document.querySelector('canvas[data-name={name}]');
            return canvas.getContext('2d').getImageData(32, 24, 1, 1).data[1]"""
        return self.browser.execute_script(script)

    def slide(self, name, value):
        script = f"""const slider = document.getElementById('{name}'); slider.value = {value};
            slider.dispatchEvent(new Event('input')); slider.dispatchEvent(new Event('change'))"""
        self.browser.execute_script(script)

    def wait(self, condition, complaint="it does not happen"):
        WebDriverWait(self.browser, PATIENCE_S, 0.05).until(lambda _: condition(), complaint)

    def wait_for_pictures(self, *names):
        for name in names:
            before = self.canvas(name)
            self.wait(lambda name=name, was=before: self.canvas(name) != was, f"{name} stands")


def test_pictures_move_and_what_the_page_says_is_right(browser, serve):
    show, engine = engine_show(camera())
    engine.trained = False
    page = Page(browser, serve(show).address)

    page.wait_for_pictures(*PICTURES)
    page.wait(lambda: float(page.text("fps")) > 0 and float(page.text("shown")) > 0)
    assert page.text("backend") == "noop"
    assert page.text("source") == "camera 7"
    assert re.fullmatch(r"\d+ ms", page.text("age"))
    page.wait(lambda: "untrained weights" in page.text("notices"))
    present = browser.find_elements(By.CSS_SELECTOR, "#legend .present")
    labels = engine.labels.names()
    assert [each.text for each in present] == [labels[1], labels[2]]
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_sliders_set_the_engine_and_change_the_picture(browser, serve):
    show, engine = engine_show(camera())
    page = Page(browser, serve(show).address)
    page.wait_for_pictures("magimg")

    page.slide("tau", 0.1)
    page.wait(lambda: engine.tau == 0.1)
    page.wait(lambda: page.brightness("magimg") < 30 < page.brightness("input"))
    page.slide("temporal", 0.5)
    page.wait(lambda: engine.temporal == 0.5 and engine.tau == 0.1)
    page.wait(lambda: page.text("temporal-value") == "0.50")
    page.click("own")
    page.wait(lambda: engine.tau == 1.0)
    browser.execute_script("send('tune', [3, 0])")
    page.wait(lambda: "tau is 3.0; accepted: 0.0 to 1.0" in page.text("notices"))


def test_outputs_that_nobody_looks_at_are_not_made(browser, serve):
    show, engine = engine_show(camera())
    asked = []
    fuse = engine.fuse
    engine.fuse = lambda rgb, extras, *, wait: asked.append(extras) or fuse(rgb, extras, wait=wait)
    page = Page(browser, serve(show).address)
    page.wait_for_pictures("infrared")
    assert asked[-1] == {"infrared", "enhanced"}

    browser.find_element(By.CSS_SELECTOR, "#outputs [data-name=infrared]").click()
    page.wait(lambda: asked[-1] == {"enhanced"})
    assert not browser.find_element(By.CSS_SELECTOR, "canvas[data-name=infrared]").is_displayed()
    page.click("mode")
    page.wait(lambda: asked[-1] == frozenset())
    page.wait_for_pictures("input", "magimg")

    browser.get("about:blank")
    page.wait(lambda: not show._wanted)
    time.sleep(0.2)
    before = engine.frames
    time.sleep(0.3)
    assert engine.frames == before


def test_two_pictures_lie_under_a_divider_that_can_be_dragged(browser, serve):
    page = Page(browser, serve(engine_show(camera())[0]).address)
    page.wait_for_pictures("magimg")
    page.click("mode")

    left, right = (
        browser.find_element(By.CSS_SELECTOR, f"figure.{side}") for side in ("left", "right")
    )
    assert left.rect == right.rect
    before = browser.find_element(By.ID, "handle").rect["x"]
    actions = webdriver.ActionChains(browser)
    actions.move_to_element(left).click_and_hold().move_by_offset(-150, 0).release().perform()
    moved = browser.find_element(By.ID, "handle").rect["x"] - before
    assert moved == pytest.approx(-150, abs=2)
    cut = float(re.search(r"([\d.]+)%", right.value_of_css_property("clip-path"))[1])
    assert cut == pytest.approx(50 - 15000 / left.rect["width"], abs=1)


def test_a_file_is_paused_stepped_scrubbed_and_its_end_is_said(browser, serve, tmp_path):
    feed = clip(tmp_path)
    page = Page(browser, serve(engine_show(feed)[0]).address)
    page.wait_for_pictures("input")
    page.click("pause")
    page.wait(lambda: page.text("age") == "paused")
    time.sleep(0.3)
    still, at = page.canvas("input"), feed.position_s

    page.click("step")
    page.wait(lambda: page.canvas("input") != still)
    assert feed.position_s == pytest.approx(at + 0.05)
    page.slide("scrub", 1.5)
    page.wait(lambda: feed.position_s == pytest.approx(1.5))
    page.wait(lambda: page.text("time").startswith("0:01.5 / 0:"))
    # A slider changes the picture also while it stands.
    page.slide("tau", 0.1)
    page.wait(lambda: page.brightness("magimg") < 30)
    page.slide("scrub", 2.8)
    page.click("pause")
    page.wait(lambda: "the end of street.mp4" in page.text("notices"))
    page.click("pause")
    page.wait(lambda: 0.0 < feed.position_s < 2.0)


def test_a_camera_that_stops_is_said_and_one_that_comes_back_is_shown(browser, serve):
    show, _ = engine_show(camera(frames=40, fault="camera 7 gives no more frames"))
    page = Page(browser, serve(show).address)
    page.wait(lambda: "camera 7 gives no more frames" in page.text("notices"))
    page.wait_for_pictures("input")


def test_the_page_finds_a_server_that_was_started_again(browser, serve):
    served = serve(engine_show(camera())[0])
    page = Page(browser, served.address)
    page.wait_for_pictures("input")

    served.end()
    page.wait(lambda: "trying again" in page.text("notices"))
    serve(engine_show(camera())[0], int(served.address.rstrip("/").rpartition(":")[2]))
    page.wait_for_pictures("input")
    assert "trying again" not in page.text("notices")


def test_two_viewers_see_the_same_at_once(browser, serve):
    served = serve(engine_show(camera())[0])
    page = Page(browser, served.address)
    first = browser.current_window_handle
    browser.switch_to.new_window("window")
    try:
        other = Page(browser, served.address)
        other.wait_for_pictures("magimg")
        other.wait(lambda: other.text("viewers") == "2")
        other.slide("tau", 0.2)
        other.wait(lambda: other.text("tau-value") == "0.20")
    finally:
        browser.close()
        browser.switch_to.window(first)
    page.wait(lambda: page.text("tau-value") == "0.20")
    page.wait_for_pictures("magimg")


@contextlib.asynccontextmanager
async def streaming(address, headers=None):
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{address}stream", headers=headers) as socket,
    ):
        yield socket


def header_of(message):
    (length,) = struct.unpack_from("<I", message.data)
    header = json.loads(message.data[4 : 4 + length])
    assert len(message.data) == 4 + length + sum(size for _, size in header["pictures"])
    return header


async def look(address, seconds, *, answers=True, headers=None):
    """Look as the page does, or like one that shows nothing; return the numbers of the shots."""
    numbers = []
    async with streaming(address, headers) as socket:
        await socket.send_str(json.dumps({"want": ["input", "magimg"]}))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                message = await socket.receive(timeout=0.1)
            except asyncio.TimeoutError:
                continue
            if message.type is aiohttp.WSMsgType.BINARY:
                numbers.append(header_of(message)["number"])
                if answers:
                    await socket.send_str('{"shown": 1}')
    return numbers


def test_a_viewer_that_does_not_keep_up_slows_neither_the_engine_nor_others(serve):
    show, engine = engine_show(camera(50.0))
    address = serve(show).address

    async def both():
        return await asyncio.gather(look(address, 2.0), look(address, 2.0, answers=False))

    kept_up, did_not = asyncio.run(both())
    assert len(did_not) == IN_FLIGHT
    assert engine.frames >= kept_up[-1] > 10 * IN_FLIGHT
    assert len(kept_up) > 5 * IN_FLIGHT
    assert kept_up == sorted(set(kept_up))


def test_a_slow_viewer_gets_the_newest_shot_and_never_an_old_one(serve):
    """What comes after an answer was the newest when the answer came."""
    show = engine_show(camera(50.0))[0]
    address = serve(show).address

    async def slowly():
        got, newest = [], []
        async with streaming(address) as socket:
            await socket.send_str('{"want": ["input"]}')
            while len(got) < 6:
                message = await socket.receive()
                if message.type is aiohttp.WSMsgType.BINARY:
                    got.append(header_of(message)["number"])
                    await asyncio.sleep(0.2)
                    newest.append(show._number)
                    await socket.send_str('{"shown": 1}')
        return got, newest

    got, newest = asyncio.run(slowly())
    assert all(later >= seen - 1 for later, seen in zip(got[IN_FLIGHT:], newest, strict=False))
    assert got[-1] - got[0] > len(got)


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://elsewhere.example"}, {"Host": "elsewhere.example:8350"}]
)
def test_pages_of_other_sites_may_not_look(serve, headers):
    address = serve(engine_show(camera())[0]).address
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        asyncio.run(look(address, 1.0, headers=headers))


def test_orders_that_make_no_sense_are_refused_and_harm_nobody(serve, tmp_path):
    show = engine_show(clip(tmp_path))[0]
    address = serve(show).address
    orders = ["[]", "7", "not JSON", '{"fly": 1}', '{"seek": NaN}', '{"tune": [NaN, 0]}']
    orders += [
        '{"want": 3}',
        '{"seek": "x"}',
        '{"tune": 1}',
        '{"pause": null}',
        '{"seek": 1' + "0" * 400 + "}",
    ]

    async def send():
        refused = []
        async with streaming(address) as socket:
            await socket.send_str('{"want": ["input"]}')
            for order in orders:
                await socket.send_str(order)
            await socket.send_str('{"seek": 1e300}')
            while len(refused) < len(orders):
                message = await socket.receive()
                if message.type is aiohttp.WSMsgType.TEXT and "refused" in message.data:
                    refused.append(json.loads(message.data)["refused"])
        return refused

    refused = asyncio.run(send())
    assert "seek is nan; accepted: a number" in refused
    assert "'fly' is none of: shown, want, tune, pause, step, seek" in refused
    assert show.failure == ""
    assert len(asyncio.run(look(address, 0.5))) > 0


def test_an_engine_that_fails_ends_the_show_and_says_why(serve):
    def load(_progress):
        raise EngineError("model 'x' cannot be loaded")

    served = serve(EngineShow(camera(), load))
    served.thread.join(PATIENCE_S)
    assert not served.thread.is_alive()
    assert served.show.state()["text"] == "model 'x' cannot be loaded"


def test_a_large_picture_is_sent_smaller_and_what_cannot_be_made_is_named():
    def broken():
        raise ValueError("no picture")

    large = np.zeros((1200, 1920, 3), np.uint8)
    packed = Shot(1, time.monotonic(), {"input": lambda: large, "magimg": broken}).pack(PICTURES)
    (length,) = struct.unpack_from("<I", packed)
    header = json.loads(packed[4 : 4 + length])
    assert header["faults"] == {"magimg": "no picture"}
    decoded = cv2.imdecode(np.frombuffer(packed[4 + length :], np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (800, 1280, 3)


def test_a_file_that_is_fused_too_slowly_drops_frames_and_keeps_its_time(tmp_path):
    feed, taken = clip(tmp_path), []
    start = time.monotonic()
    while feed.take() is not None:
        taken.append(feed.position_s)
        time.sleep(0.12)
    assert feed.drops > 10
    assert len(taken) + feed.drops == 60
    assert taken == sorted(taken)
    assert time.monotonic() - start < 6.0
    assert feed.paused


def test_a_webcam_is_read_until_it_is_unplugged(monkeypatch):
    class Camera:
        left = 3

        def isOpened(self):  # noqa: N802 - OpenCV's name
            return True

        def read(self):
            self.left -= 1
            return self.left >= 0, np.full((4, 6, 3), (1, 2, 3), np.uint8)

        def release(self):
            pass

    monkeypatch.setattr(webcam.cv2, "VideoCapture", lambda *_: Camera())
    monkeypatch.setattr(webcam.Path, "exists", lambda _: True)
    frames = webcam.webcam_frames(3)
    assert [next(frames).rgb[0, 0].tolist() for _ in range(3)] == [[3, 2, 1]] * 3
    with pytest.raises(SourceError, match="/dev/video3 gives no more frames"):
        next(frames)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give an INPUT, --topic or --node"),
        (["nothing.mp4"], "nothing.mp4 does not exist"),
        (["63"], None),
        (["--node", "fuse_node", "--model", "tiny"], "give no INPUT, --topic or model too"),
        ([".", "--tau", "7"], "tau is 7.0; accepted: 0.0 to 1.0"),
    ],
)
def test_what_cannot_be_shown_is_said_at_once(words, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if said is None:
        with pytest.raises(SourceError, match="there is no camera /dev/video63"):
            next(webcam.webcam_frames(63))
        return
    handlers = {number: signal.getsignal(number) for number in (2, 15, 1)}
    try:
        assert main(["view", *words]) == 2
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert said in capsys.readouterr().err


def test_without_the_server_library_the_extra_is_named():
    program = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from magicfuse_ros.cli import main\n"
        "sys.exit(main(['view', 'street.mp4']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ended.returncode == 2
    assert "run: pip install 'magicfuse_ros[view]'" in ended.stderr


def test_a_running_node_is_watched_and_its_parameters_are_set(
    browser, serve, tmp_path, monkeypatch
):
    """Over DDS: a camera and a node in processes of their own, and a page of each topic."""
    domain = random_domain()
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    with (
        FuseNodeProcess(domain, tmp_path / "node.log", arguments=["-r", "image:=/eye"]) as node,
        CameraProcess(domain) as eye,
    ):
        served = serve(NodeShow("/fuse_node"))
        page = Page(browser, served.address)
        page.wait(lambda: page.text("backend") == "noop", "the node is not found")
        feed = LiveTopic("/eye")
        stamps = iter(range(10**18, 2 * 10**18, 10**8))

        def send():
            index = next(stamps)
            eye.publish(rgb(picture(index // 10**8 % 50), index), topic="/eye")
            return True

        for name in PICTURES:
            before = page.canvas(name)
            page.wait(lambda name=name, was=before: send() and page.canvas(name) != was, name)
        # Whether this subscription was matched before the last frame was sent, nobody knows.
        with ThreadPoolExecutor(1) as pool, contextlib.closing(feed):
            taken = pool.submit(feed.take)
            page.wait(lambda: send() and taken.done(), "the topic's feed got no frame")
            # That nobody publishes is known for as long as it takes to look again.
            page.wait(lambda: send() and feed.said == ("ok", ""), "the topic's feed is not well")
        assert taken.result()[0].shape == (48, 64, 3)

        page.slide("temporal", 0.5)
        page.wait(lambda: page.text("temporal-value") == "0.50" and served.show._temporal == 0.5)
        browser.execute_script("send('tune', [0.3, 7])")
        page.wait(lambda: re.search("/fuse_node refuses: .*temporal", page.text("notices")))
        browser.find_element(By.CSS_SELECTOR, "#outputs [data-name=infrared]").click()
        page.wait(lambda: "infrared" not in served.show._topics)
        # Silence of the camera, then of the node.
        page.wait(lambda: "no frames on /eye" in page.text("notices"))
        node.stop()
        page.wait(lambda: "/fuse_node has said nothing" in page.text("notices"))


def test_the_command_shows_the_sample_with_the_real_model(browser, tmp_path):
    """A picture of the sample video, in the process that a user starts."""
    frame = next(open_source(sample_video()).frames()).rgb
    photo = tmp_path / "street.png"
    cv2.imwrite(str(photo), frame[..., ::-1])
    command = [sys.executable, "-m", "magicfuse_ros", "view", str(photo), "--port", "0"]
    command += ["--backend", "eager"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            said = process.stdout.readline()
            address = re.fullmatch(
                r"street.png is shown at (http://127.0.0.1:\d+/) \(Ctrl-C ends it\)\n", said
            )[1]
            page = Page(browser, address)
            page.wait(lambda: page.text("backend") == "eager on cpu")
            page.wait(lambda: all(len(page.canvas(name)) > 10_000 for name in PICTURES))
            page.slide("tau", 0.0)
            page.wait(lambda: page.text("tau-value") == "0.00")
            all_infrared = page.canvas("magimg")
            page.slide("tau", 1.0)
            page.wait(lambda: page.canvas("magimg") != all_infrared)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 128 + signal.SIGINT
        finally:
            process.kill()


def test_an_address_that_is_taken_is_named(serve):
    show = engine_show(camera())[0]
    port = serve(show).address.rstrip("/").rpartition(":")[2]
    with pytest.raises(ServeError, match=f"at 127.0.0.1:{port}: .* give another --port"):
        PageServer(show, "127.0.0.1", int(port)).run(threading.Event(), print)


def test_a_bag_is_played_from_any_time_on(tmp_path):
    with BagWriter(tmp_path / "drive") as bag:
        bag.add_topic(Topic("/eye", "sensor_msgs/msg/Image"))
        for index in range(10):
            message = encode_image(picture(index), "rgb8", Header(frame_id="eye"))
            if index == 4:
                message.encoding = "nonsense"
            bag.write("/eye", 10**18 + index * 10**8, serialize_message(message))
    clip = BagClip(tmp_path / "drive", "/eye")

    assert clip.duration_s == pytest.approx(0.9)
    frames = list(clip.frames())
    assert [frame.time_ns for frame in frames] == [index * 10**8 for index in range(10)]
    assert [index for index, frame in enumerate(frames) if frame.rgb is None] == [4]
    assert "drive, 0.40 s: " in frames[4].fault
    later = list(clip.frames(650_000_000))
    assert [frame.time_ns for frame in later] == [700_000_000, 800_000_000, 900_000_000]
    np.testing.assert_array_equal(later[0].rgb, picture(7))
