"""Which cases of the grids over all methods and families run without `-m slow`: one of each kind of mechanism.

The rest is marked slow; `make test PYTEST_FLAGS="-n 2 -m slow"` runs it. A function that is not named here runs whole.
"""

from __future__ import annotations

KINDS = ("lora", "vera", "houlsby", "prompt")
TOKENS = ("prompt", "p_tuning", "prefix_network", "houlsby", "compacter", "reft", "unipelt", "bitfit")
LINEARS = ("lora", "dora", "vera", "loha", "oft", "miss", "fourierft", "shira")

QUICK: dict[str, tuple[str, ...]] = {  # test -> the cases that always run
  "methods/test_matrix.py::test_the_row_is_what_the_method_does": KINDS,
  "methods/test_prompt_family.py::test_several_at_once_with_remat_equal_one": ("prompt", "houlsby", "reft"),
  "methods/test_prompt_family.py::test_stacked_equals_unrolled": TOKENS,
  "methods/test_prompt_family.py::test_flops_below_full": TOKENS,
  "methods/test_prompt_family.py::test_base_leaves_stay_bitwise": TOKENS,
  "methods/test_prompt_family.py::test_starts_as_the_base": ("houlsby", "compacter", "reft", "bitfit"),
  "methods/test_prompt_family.py::test_every_leaf_of_its_own_has_a_gradient": TOKENS,
  "methods/test_prompt_family.py::test_padding_changes_nothing": TOKENS,
  "methods/test_prompt_family.py::test_count": TOKENS,
  "methods/test_prompt_family.py::test_shapes_alone_give_the_same_leaves": TOKENS,
  "methods/test_reparam.py::test_the_start_is_the_base": LINEARS,
  "methods/test_reparam.py::test_the_method_acts_and_merges": LINEARS,
  "methods/test_reparam.py::test_every_leaf_of_the_method_gets_a_gradient_and_no_other": LINEARS,
  "methods/test_reparam.py::test_leaves_do_not_depend_on_how_layers_are_stored": LINEARS,
  "methods/test_reparam.py::test_a_step_needs_fewer_flops_than_full_fine_tuning": ("lora", "oft", "boft", "hra"),
  "methods/test_vision.py::test_a_method_acts_and_every_leaf_of_it_has_a_gradient": (
    "vit-prompt", "vit-vpt_deep", "vit-houlsby", "vit-lora", "deit-prompt", "dinov2-prefix", "dinov2-ia3",
    "registers-full", "clip-lora", "yolos-prompt", "yolos-vpt_deep",
  ),
  "methods/test_speech.py::test_a_method_acts_and_every_leaf_of_it_has_a_gradient": (
    "speech-lora", "speech-prefix", "classes-houlsby", "classes-vpt_deep",
  ),
  "methods/test_quantized_base.py::test_reparametrisations": LINEARS,
  "methods/test_quantized_base.py::test_on_an_encoder": ("prefix",),
  "models/test_generate.py::test_every_prompt_may_name_its_adapter": ("prompt",),
  "interop/test_lm_eval.py::test_answers_are_those_of_the_harness_on_transformers": ("lora",),
  "compare/test_study.py::test_a_study_killed_and_resumed_equals_an_unbroken_one": ("deaths0-before-training",),
  "oracles/test_peft_adapters.py::test_a_peft_adapter_loads_and_saves_back_the_same_bytes": (
    "lora", "lora-patterns", "lora-layers", "lora-embedding", "ia3", "prompt", "layernorm", "prefix",
    "prefix-projection", "vera", "fourierft", "vblora", "dora", "loha", "lokr", "hira", "gralora", "delora", "oft",
    "boft", "hra", "road", "miss", "c3a", "shira", "randlora", "p-tuning", "p-tuning-lstm", "tokens", "llama-adapter",
    "adalora", "llama-lora", "llama-prefix", "beft", "output-layer", "tied-ensured", "tied-saved", "tied-each",
  ),
  "oracles/test_peft_adapters.py::test_our_adapter_loads_in_peft": (
    "lora", "lora-patterns", "lora-modules-to-save", "ia3", "prompt", "prefix", "vera", "dora", "loha", "oft",
    "adalora", "p-tuning", "tokens", "llama-lora", "llama-adapter", "tied-ensured", "tied-saved-both",
  ),
  "oracles/test_peft_adapters.py::test_five_adamw_steps_give_the_same_losses": (
    "ia3", "prompt", "llama-lora", "prefix",
  ),
  "oracles/test_generation_config.py::test_what_the_file_says_is_obeyed": (
    "llama-rules", "t5-lengths", "llama-suppressed", "llama-beams",
  ),
  "oracles/test_token_rows.py::test_an_adapter_of_peft_with_token_rows_loads_and_saves_back": ("tied-False",),
  "oracles/test_token_rows.py::test_our_lora_beside_token_rows_loads_in_peft": ("untied",),
  "oracles/test_token_rows.py::test_an_adapter_with_a_larger_tokenizer_resizes_the_base_as_auto_peft_does": ("untied",),
  "oracles/test_token_rows.py::test_generate_reads_by_the_tokenizer_of_the_adapter": ("tied",),
  "oracles/test_vit.py::test_outputs_and_all_hidden_states": (
    "vit", "deit-teacher", "dinov2", "registers-bare", "clip", "yolos",
  ),
  "oracles/test_vit.py::test_gradients": ("deit-teacher", "registers", "clip-projection", "yolos"),
  "oracles/test_vit.py::test_saved_models_load_in_transformers": (
    "vit-bare", "deit-teacher", "dinov2-swiglu", "registers", "clip", "yolos",
  ),
  "oracles/test_vit_peft.py::test_an_adapter_of_peft_gives_equal_outputs_and_goes_back": (
    "ViTForImageClassification", "CLIPForImageClassification",
  ),
  "oracles/test_tied.py::test_forward_equals_merged_equals_saved_equals_torch_on_tied_embeddings": ("t5",),
  "oracles/test_vocabulary_peft.py::test_an_adapter_of_a_model_with_new_tokens_loads_and_saves": (
    "saved-tied", "output-own", "output-tied", "both-own",
  ),
  "oracles/test_vocabulary_peft.py::test_t5s_output_layer_reads_what_was_scaled": ("lora",),
  "oracles/test_exported_pipeline.py::test_the_pipeline_scores_an_export_as_it_was_trained": (
    "multi_label_classification-bert", "regression-llama",
  ),
  "train/test_low_precision.py::test_what_trains_is_float32_and_what_does_not_is_as_stored": (
    "full-bfloat16", "saved-float16",
  ),
  "train/test_low_precision.py::test_a_bfloat16_model_of_float32_leaves_computes_in_bfloat16": (
    "bert", "mixtral", "t5",
  ),
  "train/test_low_precision.py::test_thirty_updates_over_a_bfloat16_base_follow_the_float32_run": ("full",),
  "oracles/test_tied.py::test_an_untied_model_computes_the_same": ("granite", "t5"),
  "oracles/test_tied.py::test_an_output_layer_in_the_files_counts_as_in_transformers": (
    "differs-llama", "differs-t5", "equal-t5", "instead-gpt2",
  ),
  "oracles/test_reparam_peft.py::test_counts_logits_and_training_equal_pefts": (
    "lora", "vera", "oft", "shira", "road",
  ),
  "oracles/test_peft_decoder.py::test_outputs_and_losses_are_pefts": ("dora", "loha", "hra"),
  "oracles/test_generate.py::test_64_greedy_tokens_of_a_ragged_batch": ("llama", "gpt2", "gemma2", "bloom"),
  "models/test_generate.py::test_tokens_are_those_of_passes_without_a_cache": ("none", "lora", "prefix"),
  "train/test_together.py::test_runs_end_as_they_would_alone": ("lora",),
  "train/test_loop.py::test_other_masks_run_the_same_lines": ("bitfit",),
  "adapters/test_round_trips.py::test_saved_and_loaded_is_the_same": (
    "lora-conv", "trainable_tokens-tied", "ia3-quantized", "oft-unrolled",
  ),
  "adapters/test_verifying.py::test_a_wrong_delta_is_refused_at_its_site": ("tied", "experts"),
  "wrap/test_methods.py::test_acting_equals_the_merged_weights": (
    "function-lora", "nnx-ia3", "linen-lora", "equinox_vit-lora", "haiku-oft",
  ),
  "wrap/test_kinds.py::test_the_row_is_what_the_method_does": ("ia3", "vera", "bitfit"),
  "wrap/test_cost.py::test_a_step_of_lora_takes_at_most_seven_tenths_and_forms_nothing_as_big_as_a_weight": (
    "function", "gemma",
  ),
  "wrap/test_cost.py::test_the_compilers_own_count_is_at_most_seven_tenths": ("equinox_mlp",),
  "wrap/test_methods.py::test_without_methods_it_is_the_users_own_function": ("function", "equinox_mlp"),
  "wrap/test_collections.py::test_acting_equals_the_merged_weights": ("dantinox-lora",),
  "wrap/test_collections.py::test_every_matrix_is_found_and_it_computes_the_same": ("dantinox",),
  "wrap/test_own_model.py::test_every_library_is_inspected_from_shapes": ("grid_model", "grid_nnx"),
  "wrap/test_methods.py::test_methods_that_need_named_places_say_so": ("prefix", "houlsby", "prompt"),
  "wrap/test_family.py::test_outputs_and_gradients_are_the_registered_familys": (
    "lora", "ia3", "trainable_tokens",
  ),
  "wrap/test_family.py::test_a_step_costs_no_more_than_two_percent_above_the_registered_familys": (
    "lora", "dora", "ia3",
  ),
  "adapters/test_merging.py::test_merging_and_taking_out": (*LINEARS, "ia3", "hybrid"),
}  # fmt: skip


def is_quick(test: str, case: str) -> bool:
  """Whether a case of a test, by its path below `tests` and its id, always runs."""
  chosen = QUICK.get(test)
  return chosen is None or case in chosen
