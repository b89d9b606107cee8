"""A default is written once: parameter files, documents and package files agree with it."""

import ast
import importlib.util
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.system import FuseNodeProcess, Listener, random_domain

import magicfuse_ros
from magicfuse_ros.model.labels import UNKNOWN, LabelSet
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sizes import SIZES
from magicfuse_ros.ros.cloud.cloud_parameters import CLOUD_PARAMETERS
from magicfuse_ros.ros.node.id_map import IdMap
from magicfuse_ros.ros.node.parameters import PARAMETERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# All documents for users, in one.
DOCUMENTS = "\n".join(
    path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
)
# Parameter file, documented table and node of each table.
TABLES = [
    ("fuse.yaml", "parameters", PARAMETERS),
    ("semantic_cloud.yaml", "semantic_cloud parameters", CLOUD_PARAMETERS),
]
of_every_table = pytest.mark.parametrize(
    ("file", "marker", "table"), TABLES, ids=lambda value: value if isinstance(value, str) else ""
)


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.split()) <= 900
    links = set(re.findall(r"\]\(([^)#:]+)\)", README))
    assert len(links) > 8
    assert [link for link in links if not (ROOT / link).exists()] == []


def flatten(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def parameter_file(name):
    content = yaml.safe_load((ROOT / "config" / name).read_text(encoding="utf-8"))
    return dict(flatten(content["/**"]["ros__parameters"]))


def documented_rows(marker):
    section = re.search(
        rf"<!-- {marker}: .*?-->(.*?)<!-- end of {marker} -->", DOCUMENTS, re.DOTALL
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section[1].strip().splitlines()
    ]
    return rows[2:]


def in_words(value):
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "empty" if value == "" else f"`{value}`"


@of_every_table
def test_parameter_file_has_every_default_in_the_same_order(file, marker, table):
    values = parameter_file(file)

    assert values == {spec.name: spec.default for spec in table}
    assert list(values) == [spec.name for spec in table]
    assert [type(value) for value in values.values()] == [spec.type for spec in table]


@of_every_table
def test_parameter_file_says_what_each_parameter_is(file, marker, table):
    text = (ROOT / "config" / file).read_text(encoding="utf-8")
    comments = " ".join(line.strip().removeprefix("# ") for line in text.splitlines())

    assert [spec.name for spec in table if spec.description not in comments] == []


@of_every_table
def test_readme_table_is_the_nodes(file, marker, table):
    expected = [
        [
            f"`{spec.name}`",
            in_words(spec.default),
            spec.accepted,
            "yes" if spec.live else "no",
            spec.description,
        ]
        for spec in table
    ]

    assert documented_rows(marker) == expected


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_documents_say_how_large_the_models_are(size):
    with torch.device("meta"):
        model = MagicFuse.from_config(size)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    rounded = f"{millions:.1f}" if millions < 100.0 else f"{millions:.0f}"
    width, height = size.resolution

    assert f"| `{size.name}` | {rounded} M | {width}×{height}, " in DOCUMENTS


def test_versions_agree():
    package = ET.parse(ROOT / "package.xml").getroot()
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")

    assert package.findtext("version") == magicfuse_ros.__version__
    assert f'version="{magicfuse_ros.__version__}"' in setup


def documented_interfaces(direction, node="fuse_node"):
    """Resolved name → type of the documented topics or services, for a node without a namespace."""
    kind = "srv" if direction == "srv" else "msg"
    section = re.search(
        rf"<!-- {node} topics: .*?-->(.*?)<!-- end of {node} topics -->", DOCUMENTS, re.DOTALL
    )
    found = {}
    for name, package, cls in re.findall(
        rf"^\| {direction} `([^`]+)` \| (\w+)/(\w+)", section[1], re.MULTILINE
    ):
        full = name.replace("~", f"/{node}") if name[0] in "~/" else f"/{name}"
        found[full] = f"{package}/{kind}/{cls}"
    return found


def on_the_graph(listener, direction, node):
    graph = {
        "sub": listener.node.get_subscriber_names_and_types_by_node,
        "pub": listener.node.get_publisher_names_and_types_by_node,
        "srv": listener.node.get_service_names_and_types_by_node,
    }
    return {name: types[0] for name, types in graph[direction](node, "/")}


INTEGRATION = (ROOT / "docs" / "integration.md").read_text(encoding="utf-8")
# Of autoware_image_projection_based_fusion's segmentation_pointcloud_fusion.
AUTOWARE_IDS = 16


def test_nav2s_costmap_names_every_class_and_the_nodes_topics():
    text = re.search(r"```yaml\n(.*?)```", INTEGRATION, re.DOTALL)[1]
    layer = yaml.safe_load(text)["local_costmap"]["local_costmap"]["ros__parameters"]
    source = layer["semantic_layer"]["camera"]
    classes = [name for kind in source["class_types"] for name in source[kind]["classes"]]
    topics = {value for name, value in source.items() if name.endswith("_topic")}

    assert sorted(classes) == sorted(LabelSet.load("drive").names())
    assert len(topics) == 4
    assert topics <= set(documented_interfaces("pub", "semantic_cloud"))


def test_autowares_ids_are_of_the_label_set_and_the_topics_the_nodes():
    id_map = IdMap.parse(re.search(r"semantic_id_map:='([^']+)'", INTEGRATION)[1])
    table = id_map.table(LabelSet.load("drive").names())

    assert table.max() < AUTOWARE_IDS
    assert table[UNKNOWN] == 0
    named = re.findall(r"input/(?:mask|camera_info)0:=(\S+)", INTEGRATION)
    assert set(named) <= set(documented_interfaces("pub"))


def test_launch_arguments_in_the_documentation_are_the_nodes():
    arguments = {spec.name.replace(".", "_") for spec in (*PARAMETERS, *CLOUD_PARAMETERS)}
    arguments |= {"image", "camera_info", "points", "namespace", "rviz", "use_sim_time", "cameras"}
    given = re.findall(r" ([a-z_]+):=", DOCUMENTS)

    assert len(given) > 10
    assert set(given) <= arguments


def fault_tests():
    """Names of the tests with the marker `fault`, or in a module with it."""
    for path in (ROOT / "test").glob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        whole = any(ast.unparse(each) == "pytestmark = pytest.mark.fault" for each in tree.body)
        for each in tree.body:
            if isinstance(each, ast.FunctionDef) and each.name.startswith("test_"):
                marks = [ast.unparse(decorator) for decorator in each.decorator_list]
                if whole or "pytest.mark.fault" in marks:
                    yield f"test/{path.name}::{each.name}"


def test_the_fault_matrix_names_every_test_of_a_fault():
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    named = [re.fullmatch(r".*\| `([^`]+)` \|", row) for row in rows]

    assert sorted(row and row[1] for row in named) == sorted(fault_tests())


def test_the_figure_of_how_it_works_is_what_its_script_draws():
    path = ROOT / "docs" / "images" / "draw_how_it_works.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    grey = np.full((48, 64, 3), 90, np.uint8)
    drawn = script.draw(dict.fromkeys(script.PICTURES, grey))
    shipped = script.FIGURE.read_text(encoding="utf-8")

    assert ET.fromstring(shipped).tag.endswith("svg")
    without_pictures = re.compile(r'href="data:image/jpeg;base64,[^"]+"')
    assert without_pictures.sub("", shipped) == without_pictures.sub("", drawn)
    assert len(set(without_pictures.findall(shipped))) == len(script.PICTURES)


def test_rviz_shows_topics_of_the_node():
    config = yaml.safe_load((ROOT / "rviz" / "fuse.rviz").read_text(encoding="utf-8"))
    shown = [display["Topic"]["Value"] for display in config["Visualization Manager"]["Displays"]]

    assert shown[0] in {name.lstrip("/") for name in documented_interfaces("sub")}
    assert {f"/{name}" for name in shown[1:]} <= set(documented_interfaces("pub"))


# What every lifecycle node has.
ROS_OWN = re.compile(
    r"/(rosout|parameter_events|clock)|/\w+/(transition_event|change_state|"
    r"get_\w+|set_\w+|list_parameters|describe_parameters)"
)


def wait_for_interfaces(node, domain, expected):
    """Wait until the running node has exactly the topics and services of the documents.

    Returns what every lifecycle node has besides: the names by direction.
    """
    found, others = {}, {}
    with Listener(domain) as listener:

        def complete():
            if node not in listener.node.get_node_names():
                return False
            for way in expected:
                names = on_the_graph(listener, way, node)
                found[way] = {k: v for k, v in names.items() if not ROS_OWN.fullmatch(k)}
                others[way] = {k for k in names if ROS_OWN.fullmatch(k)}
            return found == expected

        listener.wait(complete, lambda: f"documents {expected}, node {found}")
    return others


POLICY = ET.parse(ROOT / "config" / "sros2" / "policy.xml").getroot()


def granted(node):
    """Resolved names that the SROS2 policy grants to a node without a namespace, by direction."""
    (profile,) = POLICY.findall(f"enclaves/enclave[@path='/{node}']/profiles/profile")
    assert profile.attrib == {"ns": "/", "node": node}
    names = {}
    for rule in profile:
        (qualifier,) = rule.attrib.items()
        way = {
            ("topics", ("subscribe", "ALLOW")): "sub",
            ("topics", ("publish", "ALLOW")): "pub",
            ("services", ("reply", "ALLOW")): "srv",
        }[rule.tag, qualifier]
        listed = [item.text.replace("~", f"/{node}") for item in rule]
        full = [name if name.startswith("/") else f"/{name}" for name in listed]
        assert way not in names
        assert len(set(full)) == len(full)
        names[way] = set(full)
    return names


@pytest.mark.parametrize("node", ["fuse_node", "semantic_cloud"])
def test_the_sros2_policy_grants_the_topics_and_services_in_the_readme(node):
    for way, names in granted(node).items():
        own = {name for name in names if not ROS_OWN.fullmatch(name)}

        assert own == set(documented_interfaces(way, node))


def test_the_sros2_policy_has_an_enclave_a_node():
    assert POLICY.attrib == {"version": "0.2.0"}
    paths = [enclave.attrib["path"] for enclave in POLICY.findall("enclaves/enclave")]
    assert paths == ["/fuse_node", "/semantic_cloud"]


def check_grants_of_ros_own(node, others):
    """Check what the policy grants besides the documents' names against the running node's."""
    for way, names in granted(node).items():
        # Subscribed with use_sim_time only.
        assert {name for name in names if ROS_OWN.fullmatch(name)} - {"/clock"} == others[way]


@pytest.mark.parametrize(
    ("transport", "absent"), [("raw", "/image/compressed"), ("compressed", "/image")]
)
def test_topics_and_services_in_the_readme_are_the_nodes(tmp_path, transport, absent):
    expected = {way: documented_interfaces(way) for way in ("sub", "pub", "srv")}
    del expected["sub"][absent]
    if importlib.util.find_spec("vision_msgs") is None:
        del expected["pub"]["/fuse_node/semantic/label_info"]
    domain = random_domain()
    parameters = {"input_transport": transport}

    with FuseNodeProcess(domain, tmp_path / "node.log", parameters=parameters) as node:
        node.wait_for_log("Active")
        others = wait_for_interfaces("fuse_node", domain, expected)

    check_grants_of_ros_own("fuse_node", others)


def test_topics_and_services_of_semantic_cloud_in_the_readme_are_the_nodes(tmp_path):
    expected = {way: documented_interfaces(way, "semantic_cloud") for way in ("sub", "pub", "srv")}
    # Published from the first LabelInfo on.
    del expected["pub"]["/semantic_cloud/label_info"]
    if importlib.util.find_spec("vision_msgs") is None:
        del expected["sub"]["/fuse_node/semantic/label_info"]
    if importlib.util.find_spec("tf2_ros") is None:
        del expected["sub"]["/tf"], expected["sub"]["/tf_static"]
    domain = random_domain()
    command = [sys.executable, "-m", "magicfuse_ros.ros.cloud.semantic_cloud"]

    with FuseNodeProcess(domain, tmp_path / "node.log", command=command) as node:
        node.wait_for_log("Active")
        others = wait_for_interfaces("semantic_cloud", domain, expected)

    check_grants_of_ros_own("semantic_cloud", others)
