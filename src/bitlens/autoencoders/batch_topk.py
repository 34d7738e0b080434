"""BatchTopK autoencoders (Bussmann et al. 2024, arXiv 2412.06410)."""

import torch
from torch import Tensor, nn

from bitlens import processes
from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.learner import LARGE_SAMPLE
from bitlens.autoencoders.topk import TopKAutoencoder, TopKLearner
from bitlens.seeding import generator


class BatchTopKAutoencoder(TopKAutoencoder):
    """In training the k n largest pre-activations of a batch of n rows; in use those above one
    threshold, so that rows do not depend on one another and k are on in the mean."""

    architecture = "batch_topk"

    def __init__(self, d_in: int, n_latents: int, k: int) -> None:
        super().__init__(d_in, n_latents, k)
        self.threshold = nn.Buffer(torch.zeros(()))

    def code(self, z: Tensor) -> Tensor:
        """Those above the threshold, rectified."""
        return z.relu() * (z > self.threshold)

    def batch_code(self, z: Tensor) -> Tensor:
        """Pre-activations `[n, n_latents]` -> the same with all but the k n largest at zero."""
        top = z.relu().flatten().topk(self.k * len(z), sorted=False)
        return torch.zeros_like(z).flatten().scatter(0, top.indices, top.values).view_as(z)


class BatchTopKLearner(TopKLearner[BatchTopKAutoencoder]):
    """TopK over the whole batch; the threshold of use is fitted at the end."""

    def code(self, z: Tensor) -> Tensor:
        """The k n largest of the batch, over all processes."""
        if processes.world_size() == 1:
            return self.model.batch_code(z)
        n = self.model.k * self.batch_rows(z)
        candidates = z.detach().relu().flatten()
        candidates = torch.nn.functional.pad(candidates, (0, max(0, n - len(candidates)))).topk(n)
        found = processes.of_each(candidates.values)
        return z.relu() * (z >= found.flatten().topk(n).values[-1])

    @torch.no_grad()
    def finish(self) -> Autoencoder:
        """Set the threshold above which k latents a row are on, in the mean over a large sample."""
        rows = self.sample(LARGE_SAMPLE, generator(self.settings.seed, "threshold"))
        smallest_kept = []
        for block in rows.tensor_split(-(-len(rows) // 4096)):
            codes = self.model.batch_code(self.model.pre_activations(block))
            if (codes > 0).any():
                smallest_kept.append(codes[codes > 0].min())
        if smallest_kept:
            self.model.threshold.copy_(torch.stack(smallest_kept).mean())
        return self.model
