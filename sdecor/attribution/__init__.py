"""Attribution maps of any function such as `image [H, W, C] -> logits [K]`, in batches and on the device.

Conventions: images are NHWC and floating point; other inputs have any rank, with channels last. A method explains one
image, and `explain` lifts it over a batch. A method returns signed attributions of the image's shape. Reduction over
channels (`reduce`) and scaling (`normalise`) are separate steps, so that no choice is hidden in a method.

Files:
  explain, targets     explain a batch with a method; the explained score
  methods              the table of methods: one row each, with title, cost and presets
  gradients            gradient and input × gradient
  noise                SmoothGrad and other averages over noisy copies
  frequencies          FORGrad: attributions without high spatial frequencies
  paths, guided_paths  integrated, expected and blur-integrated gradients; guided integrated gradients
  cams, layers         class activation maps; the layers that they read
  attention            attention maps of transformers
  full_gradients       FullGrad: the shares of the input and of all biases
  channels             class activation maps by the scores of single channels
  perturbation         occlusion and RISE
  coalitions, regions  ablation, Shapley values and LIME on regions; label maps
  propagation          guided backpropagation, deconvnet, DeepLIFT and LRP, by the rules in `sdecor.rules`
  baselines, inputs    baseline images; inputs of any rank and several inputs
  reduce               from attributions to maps, and their scaling
  canonical            convolutions with a fast input gradient on CPUs
"""

from sdecor.attribution.attention import (
    attention_relevance as attention_relevance,
    attention_rollout as attention_rollout,
    legrad as legrad,
)
from sdecor.attribution.baselines import (
    BASELINES as BASELINES,
    Baseline as Baseline,
    baseline_image as baseline_image,
    blurred as blurred,
)
from sdecor.attribution.cams import (
    eigen_cam as eigen_cam,
    finer_cam as finer_cam,
    grad_cam as grad_cam,
    grad_cam_plus_plus as grad_cam_plus_plus,
    guided_grad_cam as guided_grad_cam,
    hires_cam as hires_cam,
    layer_cam as layer_cam,
    xgrad_cam as xgrad_cam,
)
from sdecor.attribution.channels import ablation_cam as ablation_cam, score_cam as score_cam
from sdecor.attribution.coalitions import (
    feature_ablation as feature_ablation,
    kernel_shap as kernel_shap,
    lime as lime,
    shapley_sampling as shapley_sampling,
)
from sdecor.attribution.explain import explain as explain
from sdecor.attribution.frequencies import (
    Cutoff as Cutoff,
    choose_cutoff as choose_cutoff,
    low_pass as low_pass,
    low_passed as low_passed,
)
from sdecor.attribution.full_gradients import (
    FullGradient as FullGradient,
    full_gradient as full_gradient,
    fullgrad as fullgrad,
)
from sdecor.attribution.gradients import gradient as gradient, input_x_gradient as input_x_gradient
from sdecor.attribution.guided_paths import guided_integrated_gradients as guided_integrated_gradients
from sdecor.attribution.methods import (
    ABOVE_BASELINE as ABOVE_BASELINE,
    ABOVE_MEAN as ABOVE_MEAN,
    METHOD_INFO as METHOD_INFO,
    METHODS as METHODS,
    SCORE as SCORE,
    Cost as Cost,
    MethodInfo as MethodInfo,
    cost as cost,
)
from sdecor.attribution.noise import (
    Noise as Noise,
    smoothed as smoothed,
    smoothgrad as smoothgrad,
    squaregrad as squaregrad,
    vargrad as vargrad,
)
from sdecor.attribution.paths import (
    blur_integrated_gradients as blur_integrated_gradients,
    expected_gradients as expected_gradients,
    integrated_gradients as integrated_gradients,
)
from sdecor.attribution.perturbation import occlusion as occlusion, rise as rise
from sdecor.attribution.propagation import (
    deconvnet as deconvnet,
    deeplift as deeplift,
    guided_backpropagation as guided_backpropagation,
    lrp as lrp,
)
from sdecor.attribution.reduce import (
    NORMALISATIONS as NORMALISATIONS,
    REDUCTIONS as REDUCTIONS,
    normalise as normalise,
    reduce as reduce,
)
from sdecor.attribution.regions import grid as grid, superpixels as superpixels
from sdecor.attribution.targets import SALIENCY_OF as SALIENCY_OF, Contrast as Contrast, target_score as target_score
