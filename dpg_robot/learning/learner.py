"""The learner: trains denoiser and baseline on replayed transitions, and the policy along the denoised action gradient.

Off-policy and amortized: :mod:`dpg_robot.learning.estimator` learns the gradient from any behaviour, and the policy ascends it at
its own actions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpg_robot.contract import Contract
from dpg_robot.errors import CheckpointError, ConfigError
from dpg_robot.learning.baseline import Baseline
from dpg_robot.learning.denoiser import ActionDenoiser
from dpg_robot.learning.distributed import ONE_PROCESS, Processes
from dpg_robot.learning.estimator import GradientEstimator
from dpg_robot.learning.outcome import StateShape
from dpg_robot.learning.policy import Policy
from dpg_robot.learning.precision import computing_in
from dpg_robot.learning.replay import Batch, ReplayBuffer
from dpg_robot.learning.settings import LearnerConfig as LearnerConfig


def usable_device(name: torch.device | str) -> torch.device:
    """Return a device on which torch can compute here.

    Raises:
        ConfigError: no such device, or none that this machine or this build of torch has.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all of them
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {str(name)!r} cannot be used: {reason}; choose cpu, or one that exists, as cuda:0") from error
    return device


class Learner(nn.Module):
    """The three networks with their optimizers, and one update of them all.

    Args:
        contract: channels and sizes.
        config: settings.
        seed: seed of the initial weights and of all later random numbers.
        device: where to compute.
        privileged_size: number P of things that only a simulator knows, such as drawn masses, at the end of each observation of a
            batch. Denoiser and baseline see them, the policy does not. Both must see the same, or the gradient would be biased.
    """

    updates: Tensor

    def __init__(
        self,
        contract: Contract,
        config: LearnerConfig,
        seed: int = 0,
        device: torch.device | str = "cpu",
        privileged_size: int = 0,
    ) -> None:
        super().__init__()
        self.contract, self.config, self.privileged_size = contract, config, privileged_size
        self.device = usable_device(device)
        self.n_steps = config.steps_of_targets(contract.history)
        observations, actions = contract.observation_size, contract.num_actions
        states = observations + privileged_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = Policy(observations, actions, config.hidden_sizes)
            self.shape = StateShape(states, contract.num_features, actions, contract.history)
            self.estimator = GradientEstimator(self.shape, config)
            self.target_baseline = Baseline(states, actions, config.hidden_sizes, config.baseline_members)
        self.target_baseline.load_state_dict(self.baseline.state_dict())
        self.target_baseline.requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(config.initial_temperature).log())
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.to(self.device)
        self.optimizers = {
            "estimators": torch.optim.Adam(self.estimator.parameters(), config.learning_rate, fused=True),
            "policy": torch.optim.Adam(
                [*self.policy.parameters(), self.log_temperature], config.policy_learning_rate, fused=True
            ),
        }
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._remembers_action = contract.history > 0 and config.gradient not in ("plain", "critic")
        self.processes = ONE_PROCESS

    @property
    def denoiser(self) -> ActionDenoiser:
        """The action denoiser."""
        return self.estimator.denoiser

    @property
    def baseline(self) -> Baseline:
        """The baseline."""
        return self.estimator.baseline

    def measurable(self, observation: Tensor) -> Tensor:
        """Return the part (N, O) of observations (N, O + P) that the policy sees."""
        return observation[:, : self.contract.observation_size]

    def share_updates(self, processes: Processes) -> None:
        """Share each update from now on with other processes, which call the same methods with the same arguments.

        A batch is that of all processes; each works on its rows of it. Everything else each process does by itself, and in the
        same way.

        Args:
            processes: this process and the others.

        Raises:
            ConfigError: batches that cannot be shared equally.
            PeerError: the learners of the processes are not the same, bit by bit.
        """
        processes.require_equal_shares(self.config.batch_size, "batches")
        self.estimator.share_updates(processes)
        self.processes = processes
        self.require_same()

    def require_same(self) -> None:
        """Raise PeerError unless the learners of all processes are the same, bit by bit."""
        tensors = {"networks." + name: value for name, value in self.state_dict().items()}
        tensors["generator"] = self.generator.get_state()
        for name, optimizer in self.optimizers.items():
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        self.processes.require_same(tensors, "the learner")

    def set_learning_rate_factor(self, factor: float) -> None:
        """Set the step sizes of all optimizers to ``factor`` times those of the settings."""
        rates = {"estimators": self.config.learning_rate, "policy": self.config.policy_learning_rate}
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = factor * rates[name]

    def observe(self, batch: Batch) -> None:
        """Take new transitions into the normalizers' statistics."""
        self.policy.normalizer.update(self.measurable(batch.observation))
        self.target_baseline.normalizer.update(batch.observation)
        self.estimator.observe(batch)

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """Return exploring actions (N, A) for observations (N, O)."""
        noise = self._normal(len(observation), self.contract.num_actions)
        action: Tensor = self.policy(observation, noise)[0]
        return action

    @torch.no_grad()
    def target(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return targets (N,): y = r + discount^steps * (1 - terminal) * V(s'), with the entropy bonus in V.

        Args:
            batch: N transitions.
            generator: source of the policy's noise, instead of the learner's own.
        """
        return self._bootstrap(batch, batch.next_observation, self._normal(*batch.action.shape, generator=generator))

    def _bootstrap(self, batch: Batch, next_observation: Tensor, next_action_noise: Tensor) -> Tensor:
        action, log_probability = self.policy(self.measurable(next_observation), next_action_noise)
        values: Tensor = self.target_baseline(next_observation, action, torch.zeros_like(action[:, :1]))
        next_value: Tensor = values.amin(0) - self.log_temperature.exp() * log_probability
        return self.config.reward_scale * batch.reward + self.future_weight(batch) * next_value

    def future_weight(self, batch: Batch) -> Tensor:
        """Return what the value (N,) of the next observation counts in the target: its discount, 0 after a terminal state."""
        return self.config.discount**batch.steps * (1 - batch.terminal)

    def draw(self, replay: ReplayBuffer, count: int, generator: torch.Generator) -> Batch:
        """Return ``count`` transitions from a buffer, each over as many control steps as the settings say."""
        return replay.sample(count, generator, self.n_steps, self.config.discount)

    def observe_newest(self, replay: ReplayBuffer, count: int) -> None:
        """Take the ``count`` newest whole transitions of a buffer into the normalizers' statistics."""
        self.observe(replay.newest(count, self.n_steps, self.config.discount))

    def _target_and_slope(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the targets (N,) and their derivatives (N, A) in the actions that the next observations remember, if any."""
        next_action_noise = self.processes.draw(self._normal, *batch.action.shape)
        if not self._remembers_action:
            with torch.no_grad():
                return self._bootstrap(batch, batch.next_observation, next_action_noise), None
        remembered = batch.steps <= self.contract.history
        place = self.shape.remembered_action(torch.where(remembered, batch.steps, 1))
        action = batch.next_observation.gather(1, place).requires_grad_(True)
        target = self._bootstrap(batch, batch.next_observation.scatter(1, place, action), next_action_noise)
        (slope,) = torch.autograd.grad(target.sum(), action)
        return target.detach(), slope * remembered[:, None]

    def update(self, batch: Batch, *, improve_policy: bool = True) -> dict[str, Tensor]:
        """Update the networks once on a batch of transitions.

        Args:
            batch: transitions, those of all processes.
            improve_policy: whether the policy follows (at its interval), or only denoiser and baseline are trained.

        Returns:
            Scalars to log, detached and not yet moved to the CPU.
        """
        batch = self.processes.share_of_batch(batch)
        with computing_in(self.config.precision, self.device):
            metrics = self._update_estimators(batch)
            if improve_policy and int(self.updates) % self.config.policy_update_interval == 0:
                metrics |= self._update_policy(batch)
        self.updates += 1
        return self.processes.mean_scalars(metrics)

    def update_denoiser(self, batch: Batch) -> dict[str, Tensor]:
        """Update the denoiser alone, which needs no rewards unless its outcomes hold them; arguments as for :meth:`update`."""
        batch = self.processes.share_of_batch(batch)
        with computing_in(self.config.precision, self.device):
            metrics = self._update_denoiser(batch)
        return self.processes.mean_scalars(metrics)

    def adopt_denoiser(self, other: Learner) -> None:
        """Take over the denoiser of another learner, with its normalizers: what it knows of motion holds for every reward.

        Raises:
            CheckpointError: it denoises other channels, is told other outcomes, or has other sizes; or this gradient needs none.
        """
        motion = ("measurements", "features", "commands", "rate_hz", "history")  # the task may be another one
        for what, ours, theirs in (
            *((f"contract's {name}", getattr(self.contract, name), getattr(other.contract, name)) for name in motion),
            ("learner.gradient", self.config.gradient, other.config.gradient),
            ("learner.n_steps", self.n_steps, other.n_steps),
            ("learner.hidden_sizes", list(self.config.hidden_sizes), list(other.config.hidden_sizes)),
            ("privileged size", self.privileged_size, other.privileged_size),
        ):
            if ours != theirs:
                raise CheckpointError(f"the denoiser cannot be taken over, its {what} is {theirs!r} and must be {ours!r}")
        if self.config.gradient in ("critic", "features"):
            raise CheckpointError(f"learner.gradient={self.config.gradient} has no denoiser that could be pretrained")
        self.denoiser.load_state_dict(other.denoiser.state_dict())

    def _update_denoiser(self, batch: Batch) -> dict[str, Tensor]:
        noised_action, sigma = self.estimator.noise_actions(batch.action, self.generator)
        told, untold = self.estimator.denoise(batch, noised_action, sigma, torch.zeros_like(batch.reward))
        loss = self.estimator.denoising_loss(told, untold, batch.action, sigma)
        self._step_estimators(loss)
        return {"denoiser/loss": loss.detach()}

    def _update_estimators(self, batch: Batch) -> dict[str, Tensor]:
        target, direct = self._target_and_slope(batch)
        loss, metrics = self.estimator.loss(batch, target, direct, self.generator)
        self._step_estimators(loss)
        self._update_target()
        return metrics

    def _step_estimators(self, loss: Tensor) -> None:
        self.optimizers["estimators"].zero_grad(set_to_none=True)
        torch.autograd.backward([loss])
        self.processes.average_gradients(self.estimator.parameters())
        nn.utils.clip_grad_norm_(self.denoiser.parameters(), self.config.max_gradient_norm)
        nn.utils.clip_grad_norm_(self.baseline.parameters(), self.config.max_gradient_norm)
        self.optimizers["estimators"].step()

    def _update_policy(self, batch: Batch) -> dict[str, Tensor]:
        noise = self.processes.draw(self._normal, *batch.action.shape)
        action, log_probability = self.policy(self.measurable(batch.observation), noise)
        ascent, metrics = self._ascent(batch, action.detach())
        temperature = self.log_temperature.exp()
        # chain rule: d value / d theta = (d value / d a) * (d alpha / d theta)
        policy_loss = (temperature.detach() * log_probability - (ascent * action).sum(-1)).mean()
        entropy_gap = -log_probability.detach().mean() - self.config.target_entropy_per_action * self.contract.num_actions
        self.optimizers["policy"].zero_grad(set_to_none=True)
        (policy_loss + self.log_temperature * entropy_gap).backward()
        self.processes.average_gradients([*self.policy.parameters(), self.log_temperature])
        nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_gradient_norm)
        self.optimizers["policy"].step()
        return {
            "policy/entropy": -log_probability.detach().mean(),
            "policy/temperature": temperature.detach(),
            **metrics,
        }

    def _ascent(self, batch: Batch, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return where the policy's actions (N, A) are to move, without a graph, and scalars to log."""
        slope = self.estimator.action_gradient(batch.observation, action)
        return slope, {"policy/slope": slope.abs().mean()}

    @torch.no_grad()
    def _update_target(self) -> None:
        ours: list[Tensor] = list(self.target_baseline.parameters())
        theirs: list[Tensor] = list(self.baseline.parameters())
        torch._foreach_lerp_(ours, theirs, self.config.target_update)

    def _normal(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(*shape, generator=generator or self.generator, device=self.device)
