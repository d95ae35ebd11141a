"""A node of the cluster is lost in the middle of a run."""

import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from capfilt.engine.ray_pool import run_ray
from tests.fake_plan import expected, fake_plan


def test_a_lost_node_costs_nothing_but_time(tmp_path: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    other = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        cluster.wait_for_nodes()
        plan = fake_plan(tmp_path, "slow", shards=10)

        def lose() -> None:
            while len(list(tmp_path.glob("caption-*.pid"))) < 2:
                time.sleep(0.05)
            cluster.remove_node(other)

        thread = threading.Thread(target=lose)
        thread.start()
        seen: list[int] = []
        run_ray(plan, lambda done: seen.append(done.shard))
        thread.join()
        assert len(ray.nodes()) == 2
        assert sum(node["Alive"] for node in ray.nodes()) == 1
        assert (tmp_path / "joined").read_text() == expected(10)
    finally:
        ray.shutdown()
        cluster.shutdown()
