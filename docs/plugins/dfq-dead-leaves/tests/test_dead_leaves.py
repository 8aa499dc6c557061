import pytest
from dfq_dead_leaves.generator import DeadLeaves
from dfq_dead_leaves.plugin import DeadLeavesOptions

from dfq_plugins.testing import GeneratorContract


class TestDeadLeaves(GeneratorContract):
    @pytest.fixture(params=[1, 3])
    def generator(self, request):
        return DeadLeaves(DeadLeavesOptions(leaves=20, candidates=request.param))
