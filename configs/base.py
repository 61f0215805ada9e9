"""Every key of every config, with unit and source; the other configs are small changes of this.

The network at the paper's scale on any prepared folder, with a batch for 256 TPU v5e chips; what it
takes there and elsewhere tells `python -m opensep_jax.plan`.

Command: python -m opensep_jax.train --config configs/base.py --workdir runs/base \
             --config.data.folder=PREPARED
Expected: not yet measured.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The whole config; a key that is not here does not exist."""
    c = ConfigDict()
    c.task = "separator"  # what is learned: separator, captioner, unconditional
    c.seed = 0  # of parameters, data order and augmentation

    c.sample_rate_hz = 16000  # of records and network # BiModal repo
    c.stft = ConfigDict()
    c.stft.n_fft_samples = 1022  # 512 bins # BiModal repo
    c.stft.hop_samples = 256  # BiModal repo

    c.window_s = 5.0  # inference works in windows of this length # ours

    c.model = ConfigDict()
    c.model.size = "base"  # models/unet.py: base, small, tiny, debug; models/paper.py: paper
    c.model.dtype = "bfloat16"  # compute type; parameters are float32 # ours
    c.model.remat = False  # recompute activations: less memory, about 1.3x compute # ours

    c.data = ConfigDict()
    c.data.folder = ""  # made by `prepare`, a path or URL; several are separated by commas
    c.data.train_split = "train"  # of every folder, or one for each, separated by commas
    c.data.val_split = "val"  # likewise
    c.data.weights = ()  # probability of each folder, such as (2.0, 1.0); (): all clips are one set
    c.data.damaged = "stop"  # what a damaged record does: stop, skip (named, drawn again)
    c.data.crop_s = 8.192  # seconds of a training mixture # BiModal repo
    c.data.wordings = ConfigDict()  # probability of each kind of prompt # ours
    c.data.wordings.caption = 0.35
    c.data.wordings.label = 0.2
    c.data.wordings.paraphrase = 0.3
    c.data.wordings.description = 0.15
    c.data.balance_labels = True  # draw a class, then a clip; False: clips uniformly # ours
    c.data.scenes = False  # mix only labels of one scene (scenes.json) # ours, after Hive
    c.data.families_apart = False  # labels of a family (families.json) are never mixed # ours
    c.data.max_names = 1  # named sources of one clip that are queried # ours
    c.data.text_tokens = 128  # tokens of a prompt at most: a label with its properties # ours
    c.data.workers = 0  # reader processes (0: threads only)
    c.data.threads = 4  # reader threads of each process

    c.mix = ConfigDict()
    c.mix.counts = ConfigDict()  # probability of mixing n clips # paper: four
    for n in "23456":
        c.mix.counts[n] = 1.0 if n == "4" else 0.0
    c.mix.pairs = "complementary"  # two-clip targets: none, complementary, all # paper
    c.mix.targets = 0  # targets of a mixture in one step, seeded; 0: all # paper
    c.mix.level_db = 5.0  # +- around equal RMS # ours
    c.mix.speed = 0.0  # playback speed, factor 1 +- this # ours
    c.mix.eq_db = 0.0  # random frequency response, standard deviation in dB # ours

    c.unconditional = ConfigDict()  # of the task unconditional: `separator` without text
    c.unconditional.assignment = "pit"  # whose target an output is: pit, mixit # paper's baselines
    c.unconditional.outputs = 4  # masks of a mixture # ours

    c.captioner = ConfigDict()  # of the task captioner, which has no use for stft, model and loss
    c.captioner.size = "tiny"  # a name in models/captioner.py: tiny, debug
    c.captioner.mel = ConfigDict()
    c.captioner.mel.n_fft_samples = 1024  # ours
    c.captioner.mel.hop_samples = 512  # ours
    c.captioner.mel.low_hz = 40.0  # lower edge of the lowest mel band # ours
    c.captioner.mel.high_hz = 8000.0  # upper edge of the highest # ours
    c.captioner.tag_weight = 10.0  # of the tags' loss; the caption's has weight 1 # ours
    c.captioner.counts = ConfigDict()  # probability of mixing n clips # ours
    for n, probability in {"1": 0.2, "2": 0.3, "3": 0.3, "4": 0.2}.items():
        c.captioner.counts[n] = probability
    c.captioner.augment = ConfigDict()  # besides mix.level_db, mix.speed and mix.eq_db # ours
    c.captioner.augment.tilt = 0.4  # largest gain of the sample before, added to a clip
    c.captioner.augment.echo = 0.4  # largest gain of a reflection, added to a clip
    c.captioner.augment.echo_s = 0.03  # its longest delay
    c.captioner.augment.noise_db = (-50.0, -15.0)  # white noise relative to the mixture
    c.captioner.augment.mask_bands = 8  # most neighbouring mel bands that are blanked
    c.captioner.augment.mask_frames = 12  # most neighbouring frames that are blanked
    c.captioner.augment.masks = 2  # how often either is blanked

    c.loss = ConfigDict()  # weight of each loss of training/losses.py
    c.loss.negative_snr = 1.0  # ours
    c.loss.magnitude_l1 = 0.0  # BiModal repo

    c.optim = ConfigDict()
    c.optim.learning_rate = 1e-3  # peak # ours
    c.optim.warmup_steps = 1000  # ours
    c.optim.final_fraction = 0.02  # of the peak, where the cosine ends # ours
    c.optim.b1 = 0.9
    c.optim.b2 = 0.98  # ours
    c.optim.weight_decay = 0.01  # on kernels, see `decays` of training/optim.py # ours
    c.optim.clip_norm = 1.0  # global norm of gradients # ours
    c.optim.ema_decay = 0.9995  # moving average that is evaluated and shipped # ours

    c.train = ConfigDict()
    c.train.steps = 200_000  # ours
    c.train.batch = 2048  # mixtures of a step over all devices: 8 for each of 256 chips # ours
    c.train.accumulation = 1  # parts whose gradients are averaged # ours
    c.train.log_every_steps = 50
    c.train.save_every_steps = 1000
    c.train.keep_checkpoints = 3  # newest ones; the best by validation is kept besides
    c.train.init_from = ""  # a new run starts from this checkpoint (name or path); empty: random

    c.mesh = ConfigDict()  # devices on each axis; -1: what is left
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1  # for language models; nothing that is trained here uses it
    c.mesh.fsdp_min_size = 2**18  # elements below which a parameter is not split # ours

    c.eval = ConfigDict()  # fixed validation mixtures inside the run # ours
    c.eval.every_steps = 1000
    c.eval.sources = (2, 3)  # sources of a mixture
    c.eval.mixtures = 64  # of each number of sources
    c.eval.seconds = 5.0
    c.eval.level_db = 2.5  # +- around equal RMS
    c.eval.wording = "caption"  # kind of prompt: caption, label, paraphrase, description
    c.eval.batch = 8  # mixtures at a time, rounded up to a multiple of the devices
    c.eval.seed = 1234
    c.eval.panels = 1  # mixtures of each number of sources to hear and see in TensorBoard
    return c.lock()
