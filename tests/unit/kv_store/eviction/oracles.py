"""The policies again, the simple way: lists, searched from the oldest on."""

from collections.abc import Callable

from rtp_serve.kv_cache.block import BlockHash

MayGo = Callable[[BlockHash], bool]


class Tree:
    """Residents and their parents."""

    def __init__(self) -> None:
        self.parents: dict[BlockHash, BlockHash | None] = {}

    def is_leaf(self, key: BlockHash) -> bool:
        return key not in self.parents.values()


class NaiveLRU(Tree):
    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.order: list[BlockHash] = []

    def insert(self, key: BlockHash, parent: BlockHash | None) -> None:
        self.parents[key] = parent
        self.order.append(key)

    def hit(self, key: BlockHash) -> None:
        self.order.remove(key)
        self.order.append(key)

    def remove(self, key: BlockHash) -> None:
        self.order.remove(key)
        del self.parents[key]

    def victim(self, may_go: MayGo) -> BlockHash | None:
        for key in self.order:
            if self.is_leaf(key) and may_go(key):
                self.remove(key)
                return key
        return None


class NaiveARC(Tree):
    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.target = capacity, 0.0
        self.t1: list[BlockHash] = []
        self.t2: list[BlockHash] = []
        self.b1: list[BlockHash] = []
        self.b2: list[BlockHash] = []

    def insert(self, key: BlockHash, parent: BlockHash | None) -> None:
        self.parents[key] = parent
        if key in self.b1:
            step = max(1, len(self.b2) / len(self.b1))
            self.target = min(self.capacity, self.target + step)
            self.b1.remove(key)
            self.t2.append(key)
        elif key in self.b2:
            step = max(1, len(self.b1) / len(self.b2))
            self.target = max(0, self.target - step)
            self.b2.remove(key)
            self.t2.append(key)
        else:
            self.t1.append(key)
        self.trim()

    def hit(self, key: BlockHash) -> None:
        (self.t1 if key in self.t1 else self.t2).remove(key)
        self.t2.append(key)

    def remove(self, key: BlockHash) -> None:
        (self.t1 if key in self.t1 else self.t2).remove(key)
        del self.parents[key]

    def victim(self, may_go: MayGo) -> BlockHash | None:
        sides = [(self.t1, self.b1), (self.t2, self.b2)]
        for side, ghosts in sides if len(self.t1) > self.target else sides[::-1]:
            for key in side:
                if self.is_leaf(key) and may_go(key):
                    self.remove(key)
                    ghosts.append(key)
                    self.trim()
                    return key
        return None

    def trim(self) -> None:
        room = self.capacity - len(self.t1)
        self.b1 = self.b1[-room:] if room > 0 else []
        room = 2 * self.capacity - len(self.t1) - len(self.t2) - len(self.b1)
        self.b2 = self.b2[-room:] if room > 0 else []


class NaiveS3FIFO(Tree):
    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.small_size = max(1, capacity // 10)
        self.num_ghosts = capacity - self.small_size
        self.small: list[BlockHash] = []
        self.main: list[BlockHash] = []
        self.ghosts: list[BlockHash] = []
        self.uses: dict[BlockHash, int] = {}
        self.passed: set[BlockHash] = set()  # had children when it was its turn, and has since

    def insert(self, key: BlockHash, parent: BlockHash | None) -> None:
        self.parents[key] = parent
        self.uses[key] = 0
        if key in self.ghosts:
            self.ghosts.remove(key)
            self.main.append(key)
        else:
            self.small.append(key)

    def hit(self, key: BlockHash) -> None:
        self.uses[key] = min(3, self.uses[key] + 1)

    def remove(self, key: BlockHash) -> None:
        (self.small if key in self.small else self.main).remove(key)
        del self.uses[key]
        parent = self.parents.pop(key)
        self.passed.discard(key)
        if parent is not None and self.is_leaf(parent):
            self.passed.discard(parent)

    def victim(self, may_go: MayGo) -> BlockHash | None:
        is_small_full = len(self.small) >= self.small_size
        key = self.from_small(may_go) if is_small_full else None
        return key or self.from_main(may_go) or self.from_small(may_go)

    def from_small(self, may_go: MayGo) -> BlockHash | None:
        for key in list(self.small):
            if key in self.passed:
                continue
            if self.uses[key] >= 2:
                self.uses[key] = 0
                self.small.remove(key)
                self.main.append(key)
            elif not self.is_leaf(key):
                self.passed.add(key)
            elif may_go(key):
                self.remove(key)
                self.ghosts = [*self.ghosts, key][-self.num_ghosts :] if self.num_ghosts else []
                return key
        return None

    def from_main(self, may_go: MayGo) -> BlockHash | None:
        place = 0
        while place < len(self.main):
            key = self.main[place]
            if key not in self.passed and self.uses[key]:
                self.uses[key] -= 1
                self.main.append(self.main.pop(place))
                continue
            if not self.is_leaf(key):
                self.passed.add(key)
            elif may_go(key):
                self.remove(key)
                return key
            place += 1
        return None
