// What the editor begins with: a whole job, with a word on what one usually changes.

export const EXAMPLE_JOB = `\
name: my-first-job

model:
  preset: gpt2-small

data:
  kind: text
  paths: [/data/corpus/*.txt]   # absolute: the same on every node

training:
  sequence_length: 512
  global_batch_size: 256        # never changes with scaling
  micro_batch_size: auto
  steps: 10000
  precision: bf16
  optimizer:
    learning_rate: 0.0003
  schedule:
    kind: cosine
    warmup_steps: 500

partition_size: 2               # or auto: the planner chooses

groups:
  minimum: 1
  wanted: 2
  maximum: 8

checkpoint:
  directory: /data/checkpoints/my-first-job
  interval_steps: 500
`;

export const PRESETS = [
  "gpt2-tiny", "gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl", "llama-tiny", "llama-160m",
  "llama-1b", "bert-tiny", "bert-base", "bert-large", "bert-10b", "bert-15b", "bert-20b", "bert-50b",
  "roberta-tiny", "roberta-base",
];
