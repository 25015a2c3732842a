"""Known ways to fail of torch, transformers, DeepSpeed and vLLM. The order is the order of the search in a log."""

from __future__ import annotations

from nexa_dist.plan.failures.known.signature import row, says

LIBRARY = (
    row(
        "loss_nan",
        "the loss or a gradient is no number any more (NaN, infinite)",
        "lower the learning rate, clip gradients, use bf16 instead of fp16 (trainer.precision); look at the batch of"
        " that step; torch.autograd.set_detect_anomaly(True) names the operation. nexa run --resume RUN goes on from"
        " before",
        says(
            "Loss is nan, stopping training",
            "Loss is inf, stopping training",
            "loss is nan",
            "loss is NaN",
            "Loss is NaN",
            "Current loss scale already at minimum - cannot decrease scale anymore",
            "Minimum loss scale reached",
            "' returned nan values in its ",
            "The total norm of order … is non-finite",
            "Nan or Inf found in input tensor",
        ),
    ),
    row(
        "no_pad_token",
        "the tokenizer, or the model, has no padding token",
        "tokenizer.pad_token = tokenizer.eos_token, and the same id in the model's config (config.pad_token_id)",
        says(
            "Asking to pad but the tokenizer does not have a padding token",
            "Cannot handle batch sizes > 1 if no padding token is defined",
        ),
    ),
    row(
        "transformers_old",
        "the model is newer than the library on this node: {detail}",
        "take a newer one: environment: {packages: [transformers>=VERSION]} in train.yaml",
        says(
            "has model type {detail} but Transformers does not recognize this architecture",
            "data did not match any variant of untagged enum",
            "ValueError: Tokenizer class {detail} does not exist or is not currently imported",
            "ValueError: Unrecognized model in ",
            "`rope_scaling` must be a dictionary ",
        ),
    ),
    row(
        "api_changed",
        "the program was written for another version of a library: {detail}",
        "take the version that the program names, environment: {packages: [NAME==VERSION]} in train.yaml, or change the"
        " call: of transformers evaluation_strategy is now eval_strategy, and tokenizer of the Trainer is"
        " processing_class",
        says(
            "TypeError: TrainingArguments.__init__() got an unexpected keyword argument {detail}",
            "TypeError: __init__() got an unexpected keyword argument 'evaluation_strategy'",
            "Trainer.__init__() got an unexpected keyword argument {detail}",
            "AttributeError: module 'torch{detail}' has no attribute ",
            "AttributeError: module 'transformers{detail}' has no attribute ",
        ),
    ),
    row(
        "batch_uneven",
        "the samples of a batch do not have the same length: {detail}",
        "pad or cut them in the collate function: tokenizer(…, padding=True, truncation=True), DataCollatorWithPadding;"
        " drop what is empty",
        says(
            "stack expects each tensor to be equal size, but {detail}",
            "Unable to create tensor, you should probably activate truncation and/or padding",
            "ValueError: expected sequence of length {detail} at dim ",
            "each element in list of batch should be of equal size",
            "Sizes of tensors must match except in dimension {detail}",
        ),
    ),
    row(
        "device_differs",
        "an operation got tensors of different devices: {detail}",
        "move model and batch to the same device, made from LOCAL_RANK: .to(device); what a module keeps has to be a"
        " parameter or a buffer to be moved with it",
        says(
            "Expected all tensors to be on the same device, but {detail}",
            "nput type ({detail}) and weight type (",
            "Input, output and indices must be on the current device",
            "indices should be either on cpu or on the same device as the indexed tensor",
            "Expected a '{detail}' device type for generator but found ",
            "Pointer argument (at {detail}) cannot be accessed from Triton",
        ),
    ),
    row(
        "dtype_differs",
        "an operation got tensors of different types: {detail}",
        "bring both to one type, or compute under torch.autocast; inputs that come as float64 from numpy need .float()",
        says(
            "must have the same dtype, but got {detail}",
            "expected scalar type {detail}",
            "Expected query, key, and value to have the same dtype, but got {detail}",
            "\" not implemented for '{detail}",
            "Found dtype {detail} but expected ",
        ),
    ),
    row(
        "shape_differs",
        "an operation got tensors whose shapes do not fit: {detail}",
        "print the shapes before that line; most often another model config than the data or the checkpoint were made"
        " for (hidden size, number of classes, sequence length)",
        says(
            "shapes cannot be multiplied {detail}",
            "The size of tensor a {detail}",
            "' is invalid for input of size {detail}",
            "RuntimeError: Given groups={detail}",
            "-dimensional weight {detail}",
            "Recomputed values for the following tensors have different metadata",
            "to match target batch_size {detail}",
            "ValueError: Expected input batch_size {detail}",
            "cannot be broadcast to indexing result of shape {detail}",
        ),
    ),
    row(
        "index_out_of_range",
        "an index is beyond its table: {detail}",
        "compare token ids with the embedding (resize_token_embeddings(len(tokenizer))), positions with the model's"
        " longest sequence, labels with the number of classes",
        says(
            "IndexError: index out of range in self",
            "IndexError: Target {detail} is out of bounds",
            "IndexError: index {detail} is out of bounds for dimension ",
            "Assertion `t >= 0 && t < n_classes` failed",
            "Assertion `srcIndex < srcSelectDimSize` failed",
        ),
    ),
    row(
        "no_gradient",
        "the loss hangs on no parameter that is trained",
        "look for no_grad, detach() and .item() on the way, for frozen parameters, and call"
        " enable_input_require_grads() when gradient checkpointing meets a frozen embedding",
        says(
            "does not require grad and does not have a grad_fn",
            "ValueError: optimizer got an empty parameter list",
        ),
    ),
    row(
        "backward_twice",
        "backward went a second time through a graph that was freed",
        "make the loss anew in each step, detach what is carried from step to step; add up losses before one"
        " backward()",
        says("Trying to backward through the graph a second time"),
    ),
    row(
        "inplace_changed",
        "a tensor that backward needs was changed in place",
        "look for += and functions that end in _ on activations; torch.autograd.set_detect_anomaly(True) names the"
        " operation",
        says(
            "modified by an inplace operation",
            "a leaf Variable that requires grad is being used in an in-place operation",
            "a view of a leaf Variable that requires grad is being used in an in-place operation",
        ),
    ),
    row(
        "ddp_ready_twice",
        "DistributedDataParallel got a parameter's gradient twice in one step",
        "use_reentrant=False for gradient checkpointing; no parameter outside forward(); static_graph=True when the"
        " graph never changes",
        says("Expected to mark a variable ready only once"),
    ),
    row(
        "meta_tensor",
        "a parameter has no data: it is still on the meta device",
        "load the weights before .to(): leave device_map and low_cpu_mem_usage out in training, or to_empty() and then"
        " initialise; with FSDP sync_module_states=True",
        says(
            "Cannot copy out of meta tensor",
            "is on the meta device",
            "Tensor on device meta is not on the expected device",
        ),
    ),
    row(
        "fp16_gradients",
        "the scaler of mixed precision met gradients of fp16",
        "keep the trained weights in fp32 and compute under autocast (do not load the model in fp16 for training), or"
        " use bf16 without a scaler",
        says("Attempting to unscale FP16 gradients", "No inf checks were recorded for this optimizer"),
    ),
    row(
        "fsdp_flatten",
        "FSDP wraps parameters together that differ: {detail}",
        "use_orig_params=True where some are frozen; one type for all, and for quantized"
        " weights a storage type of the same width",
        says(
            "Must flatten tensors with uniform {detail}",
            "`FlatParameter` requires uniform {detail}",
            "FSDP expects uniform original parameter dtype {detail}",
        ),
    ),
    row(
        "module_names",
        "the model has no part of the name that was asked for: {detail}",
        "print the names (named_modules()) and give those: target_modules of PEFT, the layer class that FSDP wraps",
        says(
            "ValueError: Target modules {detail} not found in the base model",
            "Could not find the transformer layer class {detail}",
        ),
    ),
    row(
        "offload_folder",
        "parts of the model would go to the disk, and no folder is named for them",
        "there is too little memory for the model: more GPUs or smaller types, no device_map in training; or"
        " offload_folder= below $NEXA_SCRATCH",
        says("Please provide an `offload_folder`", "You are trying to offload the whole model to the disk"),
    ),
    row(
        "ddp_device",
        "DistributedDataParallel got a module that is not on its GPU: {detail}",
        "move the module to the device of LOCAL_RANK before it is wrapped; of device_map take one device a rank",
        says(
            "device_ids and output_device arguments only work with single-device/multiple-device GPU modules or CPU"
            " modules, but got {detail}",
            "DistributedDataParallel's input module must be on the same type of devices, but {detail}",
            "DistributedDataParallel is not needed when a module doesn't have any parameters that require a gradient",
        ),
    ),
    row(
        "deepspeed_config",
        "the config of DeepSpeed does not fit the arguments or the number of ranks: {detail}",
        'let them be equal, or write "auto" for each value that the trainer sets; the batch is micro batch times'
        " accumulation times ranks",
        says(
            "train_batch_size is not equal to micro_batch_per_gpu {detail}",
            "Please correct the following DeepSpeed config values that mismatch TrainingArguments",
            "Check batch related parameters. {detail}",
            "DeepSpeedConfigError: {detail}",
            "no_sync context manager is incompatible with {detail}",
        ),
    ),
    row(
        "checkpoint_incomplete",
        "parts of a checkpoint are not on this node: {detail}",
        "each node wrote its own part: write below $NEXA_SHARED, or resume with the same number of ranks; the newest"
        " folder may be half written: take the one before",
        says(
            "The following zero checkpoints paths are missing: {detail}",
            "ValueError: The checkpoint folder {detail} is incomplete",
            "Unable to load weights from pytorch checkpoint file for {detail}",
        ),
    ),
    row(
        "checkpoint_shards",
        "DeepSpeed found no file of the checkpoint that belongs to this rank",
        "each node wrote its own part: write below $NEXA_SHARED, or resume with the same number of ranks",
        says("^AssertionError"),
        near=says("/deepspeed/runtime/state_dict_factory.py"),
    ),
    row(
        "pickled_class",
        "a file was pickled with a class that is not there under that name: {detail}",
        "import the class where it is loaded, under the module that saved it; better save its state_dict() and load"
        " that",
        says("AttributeError: Can't get attribute {detail}"),
    ),
    row(
        "remote_code",
        "the model or dataset brings code of its own, and running it was not allowed",
        "look at that code on its page, then trust_remote_code=True; or a model that the library has itself",
        says("contains custom code which must be executed", "trust_remote_code=True"),
    ),
    row(
        "checkpoint_absent",
        "there is no checkpoint to resume from: {detail}",
        "begin without it in the first attempt (look whether the folder holds one); checkpoints below $NEXA_SHARED are"
        " seen by every node, those of a node's own folder are gone with it",
        says(
            "No valid checkpoint found in output directory {detail}",
            "Can't find a valid checkpoint at {detail}",
            "ValueError: Can't find a checkpoint index ({detail}",
        ),
    ),
    row(
        "quantized_device",
        "a quantized model is on another GPU than the rank that trains it",
        "load it with device_map={'': LOCAL_RANK}: each rank its own copy on its own GPU",
        says(
            "-bit precision on a different device than the one you're training on",
            "You can't train a model that has been loaded with `device_map='auto'`",
            "You can't train a model that has been loaded in 8-bit",
            "-bit models. Please use the model as it is",
        ),
    ),
    row(
        "kv_cache",
        "the GPU has no room for vLLM's cache: {detail}",
        "lower max_model_len, raise gpu_memory_utilization, or spread the model over more GPUs (tensor_parallel_size);"
        " when something else holds the GPU: nexa ssh NODE -- nvidia-smi",
        says(
            "is larger than the maximum number of tokens that can be stored in KV cache {detail}",
            "No available memory for the cache blocks",
            "on startup is less than desired GPU memory utilization {detail}",
            "larger than the available KV cache memory",
        ),
    ),
    row(
        "torch_internal",
        "torch met a state that its authors held to be impossible: {detail}",
        "most often versions that do not belong together: one torch, torchvision and extensions of it on every node"
        " (docker/cuda_torch.txt, then nexa provision); else a bug of torch: its tracker knows the line",
        says("INTERNAL ASSERT FAILED at {detail}"),
    ),
    row(
        "tensor_parallel",
        "the model cannot be split into so many parts: {detail}",
        "take a number of parts that divides the attention heads (tensor_parallel_size 2, 4 or 8)",
        says("must be divisible by tensor parallel size {detail}", "is not divisible by tensor parallel size {detail}"),
    ),
)
