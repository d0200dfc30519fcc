"""Pre-training on demonstrations: maximum likelihood of a diffusion policy's chain by denoising score matching."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import tqdm
from stable_baselines3.common.type_aliases import MaybeCallback, PyTorchObs, Schedule
from stable_baselines3.common.utils import configure_logger, update_learning_rate
from torch.optim.swa_utils import AveragedModel

from sb3_diffusion.common.actor import DiffusionActor
from sb3_diffusion.common.finite import NotFinite
from sb3_diffusion.common.validation import LARGEST_SEED, check_number, check_schedule, scheduled
from sb3_diffusion.demonstrations.checks import has_statistics, statistics
from sb3_diffusion.demonstrations.columns import in_pieces, take
from sb3_diffusion.demonstrations.demonstrations import Demonstrations
from sb3_diffusion.demonstrations.recording import seeded
from sb3_diffusion.diffusion import log_det_tanh

SelfPretraining = TypeVar("SelfPretraining", bound="PretrainingMixin")

# The validation bound, and where the read-out starts, are computed on so many rows at most.
SAMPLED_ROWS = 4096
VALIDATION_SEED = 0
# One gradient can be far from the others where the variance of a step is small and the network new.
MAX_GRAD_NORM = 1.0
# In float32 tanh is 1 from 9 on.
LARGEST_SQUASHED = 1 - 1e-6


class ActionBatch(NamedTuple):
    """Actions before they are squashed, ``a^0`` (B, d), and ``log |du/da^0|`` (B,) in nats, 0 without squashing."""

    actions: th.Tensor
    log_det: th.Tensor


class ImitationData:
    """
    Demonstrations as a model's actor sees them: normalised, in tanh's units, on the device.

    **Actions on the bounds.** There tanh has no inverse, and a density of actions no limit. The outermost intervals of a
    squashed action, ``boundary_width`` wide of [-1, 1]'s width of 2, count as one value each: an action in there is redrawn
    uniformly from its interval whenever it is used. So actions on the bounds are imitated up to ``boundary_width``, and what
    is maximised is, up to a constant, a lower bound on the log-probability of the interval.

    :param demonstrations: that fit the model
    :param model: the algorithm
    :param boundary_width: width of the outermost intervals
    """

    def __init__(self, demonstrations: Demonstrations, model: BaseAlgorithm, boundary_width: float) -> None:
        self.demonstrations = demonstrations
        self.policy = model.policy
        self.vec_normalize = model.get_vec_normalize_env()
        self.boundary_width = boundary_width
        self.squashed = self.policy.squash_output

    def observations(self, rows: np.ndarray) -> PyTorchObs:
        """What the policy is given at these rows, (B, …)."""
        if self.vec_normalize is None:
            return self.policy.obs_to_tensor(self.demonstrations.observations_at(rows))[0]
        raw = self.demonstrations.observations_at(rows, self.vec_normalize.venv.observation_space)
        return self.policy.obs_to_tensor(self.vec_normalize.normalize_obs(raw))[0]

    def actions(self, rows: np.ndarray) -> ActionBatch:
        """What the chain should end in at these rows."""
        space: Any = self.policy.action_space
        if not self.squashed:
            actions = take(self.demonstrations.actions, rows).astype(np.float32).reshape(len(rows), -1)
            tensor = th.as_tensor(actions, device=self.policy.device)
            return ActionBatch(tensor, tensor.new_zeros(len(rows)))
        squashed = th.as_tensor(self.demonstrations.scaled_actions_at(rows, space), device=self.policy.device)
        redrawn = squashed.sign() * (1 - self.boundary_width * th.rand_like(squashed))
        squashed = th.where(squashed.abs() > 1 - self.boundary_width, redrawn, squashed)
        actions_before = th.atanh(squashed.clamp(-LARGEST_SQUASHED, LARGEST_SQUASHED))
        return ActionBatch(actions_before, log_det_tanh(actions_before))

    def split(self, validation_fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """
        Rows to train on and rows to judge by: whole episodes, because neighbours in time are alike; of a single episode, its
        end. Episodes of one source count as one.

        :param validation_fraction: share of the steps that is wanted for judging
        :param rng: chooses the episodes
        :return: rows in ascending order
        """
        demonstrations, n_steps = self.demonstrations, len(self.demonstrations)
        _, source_of = np.unique(demonstrations.episode_sources, return_inverse=True)
        lengths = np.bincount(source_of, demonstrations.episode_lengths)
        wanted = validation_fraction * n_steps
        validation = np.zeros(n_steps, dtype=bool)
        if len(lengths) == 1:
            validation[max(1, n_steps - round(wanted)) :] = wanted >= 0.5
        elif wanted > 0:
            order = rng.permutation(len(lengths))
            # At least one episode on either side
            n_episodes = min(max(1, int((lengths[order].cumsum() <= wanted).sum())), len(lengths) - 1)
            validation = np.repeat(np.isin(source_of, order[:n_episodes]), demonstrations.episode_lengths)
        return np.flatnonzero(~validation), np.flatnonzero(validation)

    def fit_normalization(self) -> None:
        """
        Statistics of a ``VecNormalize`` that has seen no more than resets: those of the demonstrations, of their rewards too
        where they have some.
        """
        env, demonstrations = self.vec_normalize, self.demonstrations
        if env is None:
            return
        if env.norm_obs and not has_statistics(env):
            space = env.venv.observation_space
            for piece in in_pieces(len(demonstrations)):
                rows: Any = demonstrations.observations_at(np.arange(piece.start, piece.stop), space)
                for key, rms in statistics(env).items():
                    rms.update(rows[key] if key else rows)
        if env.norm_reward and env.ret_rms.count < 1 and demonstrations.rewards is not None:
            env.ret_rms.update(demonstrations.running_returns(env.gamma))


def likelihood_bound(actor: DiffusionActor, observations: PyTorchObs, batch: ActionBatch, steps: th.Tensor) -> th.Tensor:
    """
    :param actor: whose likelihood
    :param observations: (B, …)
    :param batch: B actions
    :param steps: (B,)
    :return: (B,), estimates of the evidence lower bound on ``log π(u|s)`` in nats, with u in [-1, 1] if squashed
    """
    features = actor.extract_features(observations, actor.features_extractor)
    return actor.log_likelihood_bound(features, batch.actions, steps) - batch.log_det


def random_steps(batch_size: int, diffusion_steps: int, device: th.device) -> th.Tensor:
    """(B,) diffusion steps, each equally often; in the long run also where there are fewer rows than steps."""
    offset = th.randint(diffusion_steps, (1,), device=device)
    return (th.randperm(batch_size, device=device) + offset) % diffusion_steps + 1


@th.no_grad()
def validation_bound(actor: DiffusionActor, data: ImitationData, rows: np.ndarray, batch_size: int) -> float:
    """
    :param actor: whose likelihood
    :param data: the demonstrations
    :param rows: which rows
    :param batch_size: how many of them at once
    :return: the mean bound in nats: every step of every row, with the same noise at every call
    """
    total, n_steps = 0.0, actor.diffusion_steps
    actor.set_training_mode(False)
    with seeded(VALIDATION_SEED):
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            observations, batch = data.observations(some), data.actions(some)
            for step in range(1, n_steps + 1):
                steps = th.full((len(some),), step, device=batch.actions.device)
                total += likelihood_bound(actor, observations, batch, steps).sum().item() / n_steps
    return total / len(rows)


class WeightAverage(AveragedModel):
    """
    The exponentially moving average of an actor's weights, whose memory grows with the number of updates up to the given
    decay: the untrained weights leave no trace.

    :param actor: the actor
    :param decay: share that an update leaves of the average, in [0, 1)
    """

    def __init__(self, actor: DiffusionActor, decay: float) -> None:
        def average(averaged: Any, current: Any, n_averaged: th.Tensor | int) -> None:
            n = float(n_averaged)
            th._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(actor, multi_avg_fn=average)
        self.requires_grad_(False)

    @property
    def actor(self) -> DiffusionActor:
        return self.module  # type: ignore[return-value]


@contextmanager
def borrowed_weights(actor: DiffusionActor, weights: dict[str, th.Tensor]) -> Iterator[None]:
    """The actor has these weights, and afterwards its own again."""
    own = copy.deepcopy(actor.state_dict())
    actor.load_state_dict(weights)
    try:
        yield
    finally:
        actor.load_state_dict(own)


def falling(initial: float) -> Schedule:
    """A learning rate that falls to 0 along half a cosine."""
    return lambda progress_remaining: initial * 0.5 * (1 - math.cos(math.pi * progress_remaining))


class PretrainingMixin(BaseAlgorithm):
    """
    ``pretrain`` and ``set_reference``, for all algorithms whose policy has a
    :class:`~sb3_diffusion.common.actor.DiffusionActor`.
    """

    # What set_reference was given; None: no reference
    reference_kl_coef: float | Schedule | None = None
    reference_actor: DiffusionActor | None = None

    def _setup_model(self) -> None:
        super()._setup_model()  # type: ignore[safe-super]
        if self.reference_kl_coef is not None:
            # A loaded model: its weights come next.
            self.set_reference(self.reference_kl_coef)

    def set_reference(self, kl_coef: float | Schedule | None) -> None:
        """
        Pull the policy towards what it is now while it goes on learning: after :meth:`pretrain`, towards the imitator. The
        actor's loss gets ``kl_coef Σ_k KL(q_ref ‖ q_θ)``, the divergence of the reverse kernels in closed form, at latents of
        the present policy (docs/method.md, "The pull to a reference"). It keeps modes alive that the reward does not tell
        apart. Logged: ``train/reference_kl`` in nats, of a whole chain.

        :param kl_coef: in units of the reward per nat, ≥ 0; or a function of the remaining progress (1 … 0); None: no pull
        :raises ValueError: for something else
        """
        if callable(kl_coef):
            check_schedule("kl_coef", kl_coef)
        elif kl_coef is not None:
            check_number("kl_coef", kl_coef, 0)
        self.reference_kl_coef = kl_coef
        self.reference_actor = None
        if kl_coef is not None:
            actor: DiffusionActor = self.policy.actor  # type: ignore[assignment]
            self.reference_actor = copy.deepcopy(actor)
            self.reference_actor.requires_grad_(False)
            self.reference_actor.set_training_mode(False)

    def _current_reference_kl_coef(self) -> float:
        coefficient = self.reference_kl_coef
        if callable(coefficient):
            return scheduled("kl_coef", coefficient, self._current_progress_remaining)
        return 0.0 if coefficient is None else float(coefficient)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "reference_actor"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return (state_dicts if self.reference_actor is None else [*state_dicts, "reference_actor"]), tensors

    def pretrain(
        self: SelfPretraining,
        demonstrations: Demonstrations,
        n_epochs: int = 100,
        batch_size: int = 256,
        learning_rate: float | Schedule = 1e-3,
        validation_fraction: float = 0.1,
        patience: int | None = 20,
        average_decay: float = 0.999,
        boundary_width: float = 0.02,
        critic_warmup_steps: int = 0,
        seed: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "pretrain",
        progress_bar: bool = False,
    ) -> SelfPretraining:
        """
        Imitate: maximise the evidence lower bound of the actions that were demonstrated (denoising score matching;
        docs/method.md, "Maximum likelihood"). All of the actor is trained: denoiser, variances, read-out, a learned schedule,
        and its features extractor. ``predict`` is the imitator afterwards, and ``learn`` goes on from there.

        The weights are averaged over updates. After each epoch the average is judged by its likelihood bound on episodes kept
        apart, and the best average is what the model has in the end. A ``VecNormalize`` that has seen no more than resets is
        fitted to the demonstrations. After an error the model is as it was.

        Logged: ``pretrain/loss``, ``pretrain/validation_bound`` (nats, of actions in [-1, 1] if squashed),
        ``pretrain/learning_rate``, ``pretrain/epoch``, ``pretrain/n_updates``.

        :param demonstrations: that fit the model's environment (:meth:`Demonstrations.check`)
        :param n_epochs: passes over the demonstrations, at most
        :param batch_size: of an update
        :param learning_rate: a number, from which it falls to 0 along half a cosine; or a function of the remaining progress
            (1 … 0)
        :param validation_fraction: share of the steps, in whole episodes, that is kept apart; 0: none, and the last average is
            taken
        :param patience: stop after so many epochs without a better validation bound; None: never
        :param average_decay: share that an update leaves of the averaged weights, from 0 (no average) to below 1
        :param boundary_width: actions within this distance of -1 or 1, in tanh's units, count as on the bound, and are
            imitated as uniform over this interval: tanh has no inverse at the bound
        :param critic_warmup_steps: updates of the critics and the diffusion value on the demonstrations afterwards, for the
            imitator as it then is; their rewards and next observations must be known. Off-policy algorithms only
        :param seed: of the split, the order of the data and all noise; None: SB3's global generators, as they are
        :param callback: called after each epoch, with the averaged weights in the model: ``on_step`` counts epochs, and may
            stop the training. ``num_timesteps`` stands still
        :param log_interval: epochs between two log entries; the last epoch has one
        :param tb_log_name: the folder for TensorBoard
        :param progress_bar: a bar that counts updates, with tqdm and rich
        :return: the model
        :raises ValueError: for an argument out of range, and for demonstrations that do not fit
        :raises NotFinite: for a loss that is not finite
        """
        check_number("n_epochs", n_epochs, 1, integer=True)
        check_number("batch_size", batch_size, 1, integer=True)
        if callable(learning_rate):
            check_schedule("learning_rate", learning_rate)
            schedule = learning_rate
        else:
            check_number("learning_rate", learning_rate, 0, exclusive=True)
            schedule = falling(learning_rate)
        check_number("validation_fraction", validation_fraction, 0, 0.9)
        if patience is not None:
            check_number("patience", patience, 1, integer=True)
        check_number("average_decay", average_decay, 0, 1 - 1e-9)
        check_number("boundary_width", boundary_width, 1e-5, 0.5)
        check_number("critic_warmup_steps", critic_warmup_steps, 0, integer=True)
        if seed is not None:
            check_number("seed", seed, 0, LARGEST_SEED, integer=True)
        check_number("log_interval", log_interval, 1, integer=True)
        if not isinstance(demonstrations, Demonstrations):
            raise ValueError(f"demonstrations={demonstrations!r} must be Demonstrations: see Demonstrations.from_arrays")
        if progress_bar and tqdm is None:
            raise ImportError("progress_bar=True needs tqdm and rich: pip install stable-baselines3[extra]")
        demonstrations.check(self)

        if critic_warmup_steps:
            self._check_critic_warmup(demonstrations)

        data = ImitationData(demonstrations, self, boundary_width)
        statistics_before = {
            name: copy.deepcopy(value) for name, value in vars(data.vec_normalize or object).items() if name.endswith("_rms")
        }
        parameters_before = copy.deepcopy(self.get_parameters())
        try:
            with seeded(seed), self.policy.actor.all_steps_learn():  # type: ignore[operator, union-attr]
                data.fit_normalization()
                if not self._custom_logger:
                    self._logger = configure_logger(self.verbose, self.tensorboard_log, tb_log_name)
                self._fit_actor(
                    data,
                    n_epochs,
                    batch_size,
                    schedule,
                    validation_fraction,
                    patience,
                    average_decay,
                    callback,
                    log_interval,
                    progress_bar,
                )
                self._follow_actor()
                if critic_warmup_steps:
                    self._warm_up_critics(demonstrations, critic_warmup_steps)
        except BaseException:
            self.set_parameters(parameters_before)  # type: ignore[arg-type]
            if data.vec_normalize is not None:
                vars(data.vec_normalize).update(statistics_before)
            raise
        finally:
            self.policy.set_training_mode(False)
        return self

    def _check_critic_warmup(self, demonstrations: Demonstrations) -> None:
        """:raises ValueError: unless this algorithm can warm up its critics on them"""
        raise ValueError(f"critic_warmup_steps: {type(self).__name__} has no critics that learn from other policies' actions")

    def _warm_up_critics(self, demonstrations: Demonstrations, n_steps: int) -> None:
        raise NotImplementedError

    def _fit_actor(
        self,
        data: ImitationData,
        n_epochs: int,
        batch_size: int,
        learning_rate: Schedule,
        validation_fraction: float,
        patience: int | None,
        average_decay: float,
        callback: MaybeCallback,
        log_interval: int,
        progress_bar: bool,
    ) -> None:
        """:meth:`pretrain` without its precautions."""
        rng = np.random.default_rng(np.random.randint(LARGEST_SEED))
        train_rows, validation_rows = data.split(validation_fraction, rng)
        if len(validation_rows) > SAMPLED_ROWS:
            validation_rows = np.sort(rng.choice(validation_rows, SAMPLED_ROWS, replace=False))
        actor: DiffusionActor = self.policy.actor  # type: ignore[assignment]
        some_rows = rng.choice(train_rows, min(len(train_rows), SAMPLED_ROWS), replace=False)
        actor.start_readout(data.actions(np.sort(some_rows)).actions)
        parameters = [parameter for parameter in actor.parameters() if parameter.requires_grad]
        optimizer = self.policy.optimizer_class(parameters, lr=learning_rate(1.0), **self.policy.optimizer_kwargs)  # type: ignore[call-arg]
        average = WeightAverage(actor, average_decay)
        n_batches = math.ceil(len(train_rows) / batch_size)
        n_updates = 0
        best_bound, best_epoch, best_weights = -math.inf, 0, None
        callback = self._init_callback(callback)
        callback.on_training_start(locals(), globals())
        bar = tqdm(total=n_epochs * n_batches) if progress_bar else None

        for epoch in range(1, n_epochs + 1):
            actor.set_training_mode(True)
            losses = []
            for rows in np.array_split(rng.permutation(train_rows), n_batches):
                progress_remaining = 1 - n_updates / (n_epochs * n_batches)
                update_learning_rate(optimizer, rate := scheduled("learning_rate", learning_rate, progress_remaining))
                batch = data.actions(rows)
                steps = random_steps(len(rows), actor.diffusion_steps, self.device)
                loss = -likelihood_bound(actor, data.observations(rows), batch, steps).mean()
                optimizer.zero_grad()
                loss.backward()
                th.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
                optimizer.step()
                actor.keep_scale_in_range()
                average.update_parameters(actor)
                losses.append(loss.detach())
                n_updates += 1
                if bar is not None:
                    bar.update()
            mean_loss = th.stack(losses).mean().item()
            if not math.isfinite(mean_loss):
                raise NotFinite(f"The loss of epoch {epoch} is {mean_loss}; a smaller learning_rate than {rate:g} may help")

            self.logger.record("pretrain/loss", mean_loss)
            if len(validation_rows):
                bound = validation_bound(average.actor, data, validation_rows, batch_size)
                self.logger.record("pretrain/validation_bound", bound)
                if bound > best_bound:
                    best_bound, best_epoch, best_weights = bound, epoch, copy.deepcopy(average.actor.state_dict())
            self.logger.record("pretrain/learning_rate", rate)
            self.logger.record("pretrain/epoch", epoch)
            self.logger.record("pretrain/n_updates", n_updates, exclude="tensorboard")
            if epoch % log_interval == 0:
                self.logger.dump(step=n_updates)
            with borrowed_weights(actor, average.actor.state_dict()):
                callback.update_locals(locals())
                goes_on = callback.on_step()
            if not goes_on or (patience is not None and best_weights is not None and epoch - best_epoch >= patience):
                break
        if self.logger.name_to_value:
            self.logger.dump(step=n_updates)

        if bar is not None:
            bar.refresh()
            bar.close()
        actor.load_state_dict(best_weights or average.actor.state_dict())
        callback.on_training_end()

    def _follow_actor(self) -> None:
        """Copies of the actor, or of parts that it shares, take its new weights."""
        policy: Any = self.policy
        if hasattr(policy, "actor_target"):
            policy.actor_target.load_state_dict(policy.actor.state_dict())
        if hasattr(policy, "critic_target") and policy.share_features_extractor:
            weights = policy.actor.features_extractor.state_dict()
            policy.critic_target.features_extractor.load_state_dict(weights)
