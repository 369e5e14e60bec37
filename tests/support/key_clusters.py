"""A plain statement of ReSV's memory: one token, one head, one cluster at a time, in lists. And the
contents of vicort's memory in the same form."""

import numpy as np

from vicort.runtime.devices.pages import HostPool
from vicort.runtime.memory.long_term.hash_clustering import HashPlanes
from vicort.runtime.memory.long_term.selection import Recall


class PlainClusters:
    """Hash-bit clustering of one layer and KV head."""

    def __init__(self, settings, normals, page_tokens, capacity):
        self.settings = settings
        self.normals = normals
        self.page_tokens = page_tokens
        self.capacity = capacity  # cells
        self.clusters = []  # in the order they were opened: lists of (serial, key)
        self.serial = 0
        self.counted = None  # serials of the tokens that a limited view reads; None = all

    def bits(self, key):
        return [float(key @ normal) > 0 for normal in self.normals.T]

    def hash(self, cluster):
        return self.bits(np.mean([key for _, key in cluster], axis=0))

    def cells(self, cluster):
        return -(-len(cluster) // self.page_tokens)

    def absorb(self, units):
        """units: lists of keys."""
        # every token may open a cluster
        while sum(map(self.cells, self.clusters)) + sum(map(len, units)) > self.capacity:
            self.clusters.remove(min(self.clusters, key=lambda cluster: cluster[-1][0]))
        for keys in units:
            recent = [
                cluster
                for cluster in self.clusters[-self.settings.recent :]
                if len(cluster) < self.settings.most_tokens
            ]
            before = [(self.hash(cluster), cluster) for cluster in recent]
            opened = []
            for key in keys:
                near = self.nearest(before, key) or self.nearest(opened, key)
                if near is None:
                    near = []
                    self.clusters.append(near)
                    opened.append((self.bits(key), near))
                near.append((self.serial, key))
                self.serial += 1

    def nearest(self, clusters, key):
        """Of clusters (hash, tokens), the newest of the nearest that is near enough."""
        found, least = None, self.settings.threshold
        for bits, cluster in reversed(clusters):
            distance = sum(a != b for a, b in zip(bits, self.bits(key), strict=True))
            if distance < least:
                found, least = cluster, distance
        return found

    def read_of(self, cluster):
        """Serials of its tokens that may be read."""
        serials = [serial for serial, _ in cluster]
        return serials if self.counted is None else [s for s in serials if s in self.counted]

    def choose(self, queries):
        """Serials of the tokens that a KV head reads. queries: [heads, D]"""
        chosen = set()
        clusters = [cluster for cluster in self.clusters if self.read_of(cluster)]
        if not clusters:
            return chosen
        for query in queries:
            means = [np.mean([key for _, key in cluster], axis=0) for cluster in clusters]
            exponents = [float(query @ mean) / len(query) ** 0.5 for mean in means]
            scores = [np.exp(exponent - max(exponents)) for exponent in exponents]
            total = sum(
                score * len(self.read_of(cluster))
                for score, cluster in zip(scores, clusters, strict=True)
            )
            running = 0.0
            for score, index in sorted(
                zip(scores, range(len(scores)), strict=True), key=lambda item: -item[0]
            ):
                if running > self.settings.share * total:
                    break
                running += score * len(self.read_of(clusters[index]))
                chosen |= set(self.read_of(clusters[index]))
        return chosen


class PlainMemory:
    """All layers and heads of it."""

    def __init__(self, memory):
        model = self.model = memory.model
        normals = HashPlanes(
            len(groups_of(model)), memory.settings.hash_bits, model.head_dim, memory.settings.seed
        ).normals
        self.groups = {
            group: PlainClusters(memory.settings, plane, model.page_tokens, memory.capacity)
            for group, plane in zip(groups_of(model), normals, strict=True)
        }

    def absorb(self, departing):
        for (layer, head), group in self.groups.items():
            group.absorb(
                [
                    departing.k[layer, departing.unit == unit, head]
                    for unit in range(len(departing.pages))
                ]
            )

    def choose(self, q):
        heads = self.model.query_heads // self.model.kv_heads
        return {
            (layer, head): group.choose(q[layer, head * heads : (head + 1) * heads])
            for (layer, head), group in self.groups.items()
        }


def groups_of(model):
    return [(layer, head) for layer in range(model.layers) for head in range(model.kv_heads)]


def clusters_of(memory, group):
    """The clusters of vicort's memory, in the order they were opened: (serials, mean) each."""
    owner, filled = memory._cells.filled(
        memory._tokens[:, : memory._cells.used], memory.model.page_tokens
    )
    found = []
    for cluster in memory._clusters[group, : memory._counts[group]]:
        cells = [slot for slot in np.flatnonzero(owner[group] == cluster) if filled[group, slot]]
        serials = [
            serial
            for slot in cells
            for serial in memory._serials[slot, group, : filled[group, slot]]
        ]
        found.append((sorted(serials), memory._means[group, cluster]))
    return found


def read(memory, selection):
    """The tokens that a reader sees in the engine's pool, named by their values, by layer and
    head."""
    model = memory.model
    pool = HostPool(np.zeros, model, 1000, np.float32, by_head=True)
    table = Recall(pool, range(1000)).load(memory.pool, selection)
    seen = {}
    for layer, head in groups_of(model):
        slots = table[layer, head][table[layer, head] >= 0]
        is_filled = pool.cell_positions[slots, layer, head, :, 0] >= 0
        assert (
            pool.cell_positions[slots, layer, head, :, 0][is_filled]
            == pool.data[slots, layer, head, 1, :, 0][is_filled]
        ).all()
        seen[layer, head] = pool.data[slots, layer, head, 1, :, 0][is_filled].astype(int).tolist()
    return seen
