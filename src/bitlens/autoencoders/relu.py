"""ReLU with an L1 penalty (Bricken et al. 2023; Cunningham et al. 2023, arXiv 2309.08600)."""

from torch import Tensor

from bitlens.autoencoders.sparse import Penalty, PenaltyLearner, SparseAutoencoder


class ReLUAutoencoder(SparseAutoencoder):
    """`relu(z)`."""

    architecture = "relu"

    def code(self, z: Tensor) -> Tensor:
        """`relu(z)`."""
        return z.relu()


class TanhReLUAutoencoder(SparseAutoencoder):
    """`tanh(relu(z))`, of early SAELens."""

    architecture = "tanh_relu"

    def code(self, z: Tensor) -> Tensor:
        """`tanh(relu(z))`."""
        return z.relu().tanh()


class ReLULearner(PenaltyLearner[ReLUAutoencoder]):
    """Pays the L1 norm of the codes."""

    def penalised(self, x: Tensor) -> Penalty:
        """The sum of the codes."""
        codes = self.model.code(self.model.pre_activations(x))
        return Penalty(codes, self.model.reconstruct(codes), codes.sum(1).mean(), x.new_zeros(()))
