"""Trains one adapter by an objective: AdamW on the mean of the objective's losses."""

import torch
from peft import LoraConfig

from pipeline import adapters, objectives
from pipeline.backbones import precision
from pipeline.backbones.base import Backbone
from pipeline.recording.trajectories import Trajectories
from pipeline.training import batches
from pipeline.training.jobs import Job
from pipeline.training.trainers.base import Memory, TrainStep, add_adapter, check_finite, of_backbone, set_rate
from pipeline.training.velocities import Velocities


class ObjectiveTrainer:
    """The trainer of the objective `job.settings.objective`; arguments and errors as for `MakeTrainer`."""

    def __init__(self, backbone: Backbone, trajectories: Trajectories, job: Job, anchors: Trajectories | None):
        settings = job.settings
        objectives.check(f"{job.section}.objective", settings.objective)
        self.objective = objectives.OBJECTIVES[settings.objective]
        self.backbone, self.trajectories, self.job = backbone, trajectories, job
        self.anchors = anchors if job.anchored and self.objective.guided else None
        self.negative = trajectories.negative()
        parameters = add_adapter(backbone, job)
        self.optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, fused=True)
        state = {name: tensor.to(backbone.device) for name, tensor in self.objective.state().items()}
        self.memory = Memory(parameters, {"adapter": self.optimizer}, state)

    def step(self, train_step: int) -> TrainStep:
        """As `Trainer.step`."""
        settings, objective = self.job.settings, self.objective
        batch = batches.draw(self.trajectories, self.job, objective, train_step)
        if self.anchors is not None:
            batch = batches.together(batch, batches.draw_anchors(self.anchors, self.job, objective, train_step))
        sample = batch.sample.to(self.backbone.device)
        learning_rate = settings.learning_rate * objective.rate(train_step / settings.train_steps)
        set_rate(self.optimizer, learning_rate)
        velocities = Velocities(self.backbone, self.job, batch.conditioning, self.negative, self.trajectories.recording)
        student = velocities.student(guided=objective.guided)
        # around the backward too: gradient checkpointing runs the forward in it
        with precision.attention(self.backbone, settings.precision):
            losses = objective.loss(sample, student, velocities.teacher, **self.memory.tensors)
            check_finite(losses.detach(), sample.sigma, train_step, self.job.name)
            loss = losses.mean()
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()
        return TrainStep(train_step, loss.item(), learning_rate)

    def trained(self) -> dict[str, tuple[adapters.State, LoraConfig]]:
        """The one adapter, under the job's name."""
        return {self.job.name: of_backbone(self.backbone, self.job.name)}
