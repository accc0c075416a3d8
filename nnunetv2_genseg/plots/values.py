"""What each logged value means, in the order in which a reader looks at them."""

from __future__ import annotations

MEANINGS = {
    "share": "Probability of a patch to become synthetic, at the end of the epoch; 0 in the warm-up and in the tail.",
    "acceptance_rate": "Share of the synthetic pairs whose mask is new. The masks of the others were outside of the bounds.",
    "preferred": "Judged pairs: fraction of the drawn pairs that were kept. Where two in a row are not, the patch stays real.",
    "teacher_agreement": "Unlabelled images: Dice of the teacher's labels of patches and of their mirror images.",
    "unlabelled_share": "Unlabelled images: probability of a synthetic patch to be made from one; lower if the teacher is poor.",
    "pseudo_labels_used": "Unlabelled images: fraction of their patches that were used; else the labels were out of bounds.",
    "pseudo_labels_sure": "Unlabelled images: fraction of the voxels of their patches whose label was sure.",
    "loss_heldout": "Loss of the segmentation network on patches of held-out cases, in feedback steps.",
    "loss_synthetic": "Loss of the segmentation network on synthetic pairs, in feedback steps.",
    "hypergradient_norm": "Norm of the derivative of the held-out loss by what the feedback moves.",
    "largest_kernel_share": "Feedback on the architecture: largest weight of a kernel in any mixture; 1/3 at the beginning.",
    "deformation_factor": "Feedback on the policy: factor on displacements and on changes of shapes; 1 at the beginning.",
    "style_factor": "Feedback on the policy: factor on style noise, tone and shift; 1 at the beginning.",
    "l1": "`gan`, `vae`, `diffusion`: mean distance of the drawn to the real image, in standard deviations.",
    "loss_adversarial": "`gan`: the generator's loss by the discriminator; lower if drawn images look more real to it.",
    "loss_discriminator": "`gan`: hinge loss of the discriminator; 2 if it cannot tell drawn from real images.",
    "kl": "`vae`: KL divergence of the latents of real images from the prior.",
    "kl_drawn": "`vae`: the same of drawn images.",
    "flow": "`diffusion`: loss of flow matching.",
    "spread": "`gmm`: mean standard deviation within the classes.",
    "shape_vae": "Mask source `shape_vae`: reconstruction error of the shapes.",
    "shape_vae_kl": "Mask source `shape_vae`: KL divergence of the shapes' latents.",
}
"""By name. Values of a generator of your own are logged too."""
