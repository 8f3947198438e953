import cv2
import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray cluster of one node of one CPU; tests may add nodes, and remove them again."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def ray_address(ray_cluster, monkeypatch):
    """The address of the cluster, where `--on ray` finds it."""
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    return ray_cluster.address


@pytest.fixture
def add_node(ray_cluster):
    """A function that adds a node of one CPU and returns it; those that are left at the end are removed."""
    added = []

    def add(**how):
        added.append(ray_cluster.add_node(num_cpus=1, **how))
        ray_cluster.wait_for_nodes()
        return added[-1]

    yield add
    for node in set(added) & set(ray_cluster.list_all_nodes()):
        ray_cluster.remove_node(node, allow_graceful=False)
    ray_cluster.wait_for_nodes()  # else a later test would see it die


@pytest.fixture(scope="module")
def image_files(clear, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(clear[0][:40]):
        cv2.imwrite(str(folder / f"{number}.png"), image[:, :, ::-1])
    return folder
