"""One Ray for all tests that need one: started once per session, and connected to by a module or a process."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """Start a cluster of one node with two CPUs; its address, for `ray.init` or RAY_ADDRESS."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def connected_ray(ray_address: str) -> Iterator[None]:
    """Connect this process to the cluster for the time of a module."""
    import ray

    ray.init(address=ray_address, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
