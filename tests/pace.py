"""Which cases of the grids over all methods and families run without `-m slow`: one of each kind of mechanism.

The rest is marked slow; `make test PYTEST_FLAGS="-n 2 -m slow"` runs it. A function that is not named here runs whole.
"""

from __future__ import annotations

KINDS = ("lora", "houlsby", "prompt")
TOKENS = ("prompt", "prefix_network", "reft", "unipelt")
LINEARS = ("lora", "vera", "oft", "shira")

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
    "vit-vpt_deep", "vit-houlsby", "deit-prompt", "dinov2-prefix", "clip-lora", "yolos-prompt", "detr-lora",
  ),
  "methods/test_speech.py::test_a_method_acts_and_every_leaf_of_it_has_a_gradient": (
    "speech-lora", "speech-prefix", "classes-houlsby", "classes-vpt_deep", "letters-ia3",
  ),
  "methods/test_streams.py::test_no_output_shows_that_there_are_virtual_tokens": (
    "bert-BertForMaskedLM", "roberta-RobertaForQuestionAnswering", "gpt2-GPT2ForSequenceClassification",
    "bloom-BloomForCausalLM", "t5-T5ForConditionalGeneration", "mixtral-MixtralForCausalLM",
    "gemma3_text-Gemma3TextModel", "clip-CLIPModel", "deit-DeiTForImageClassificationWithTeacher",
    "UNet2DConditionModel-UNet2DConditionModel", "wav2vec2-Wav2Vec2ForCTC", "whisper-WhisperForAudioClassification",
    "detr-DetrForObjectDetection",
  ),
  "methods/test_linen_modules.py::test_acting_equals_the_change_of_weights": (
    "TinyViT-lora", "TinyViT-oft", "TinyViT-vera", "TinyViT-ia3", "TinyViT-beft", "TinyViT-fourierft", "Einsums-dora",
  ),
  "methods/test_linen_modules.py::test_gradients_are_those_of_the_change_of_weights": (
    "dora", "oft",
  ),
  "adapters/test_combining.py::test_what_cannot_be_done_says_why": (
    "merge-bitfit", "merge-patterns", "merge-houlsby", "merge-prompt", "merge-mam", "convert-head", "convert-prefix",
    "combine-full", "combine-reft", "combine-unipelt",
  ),
  "adapters/test_combining.py::test_changes_of_different_methods_are_combined": (
    "svd-None-total", "ties_svd-0.6-frequency",
  ),
  "adapters/test_combining.py::test_a_lora_of_full_rank_is_the_method": (
    "beft", "oft", "hybrid",
  ),
  "compare/test_published_figures.py::test_each_step_of_t0_3b_takes_what_was_kept": (
    "lora-nf4-full", "full-float32-full",
  ),
  "adapters/test_mixed.py::test_every_row_is_what_its_adapter_gives_alone": (
    "bitfit", "lora", "vera", "houlsby", "prompt", "prefix", "hybrid",
  ),
  "methods/test_prompt_family.py::test_outputs_have_the_shapes_of_the_base": (
    "bert-p_tuning", "bert-prefix", "bert-trainable_tokens", "bert-houlsby", "bert-reft_suffix", "bert-beft",
    "roberta-prompt", "roberta-llama_adapter", "roberta-compacter", "roberta-unipelt", "roberta-bitfit",
  ),
  "methods/test_docs_pages.py::test_the_command_gives_the_count": (
    "bitfit", "full", "galore", "houlsby", "hybrid", "llama_adapter", "prefix", "trainable_tokens",
  ),
  "oracles/test_llama.py::test_logits_equal_transformers": (
    "llama-biases", "llama-llama3", "llama-yarn-mscale", "mistral", "qwen2-windows", "qwen3-biases", "gemma",
    "gemma2", "gemma3-scaled", "mixtral", "qwen3_moe-mixed", "granite",
  ),
  "oracles/test_random_configs.py::test_a_random_config_is_equal_or_refused": (
    "bert", "gpt2", "gptj", "bloom", "t5", "qwen3_moe", "gemma3_text", "granite",
  ),
  "oracles/test_conv_peft.py::test_a_convolution_is_adapted_as_in_peft": (
    "lora-groups-undilated", "dora-plane", "ia3-input-groups", "loha-tucker-dilated-plane", "lokr-both-dilated-line",
    "hira-dilated-plane", "oft-shared-square", "boft-square",
  ),
  "oracles/test_conv_peft.py::test_counts_are_pefts": (
    "lora", "ia3", "lokr", "oft", "adalora",
  ),
  "oracles/test_conv_peft.py::test_what_acts_at_a_convolution_is_scaled_mixed_and_taken_out": (
    "ia3-input", "loha", "dora",
  ),
  "oracles/test_combining_peft.py::test_add_weighted_adapter": (
    "linear-total", "dare_ties-total", "svd-total", "ties_svd-frequency",
  ),
  "oracles/test_bert.py::test_outputs_and_all_hidden_states": (
    "True-BertForSequenceClassification", "True-RobertaForTokenClassification", "True-RobertaModel",
    "False-BertModel", "False-BertForTokenClassification", "False-RobertaForSequenceClassification",
  ),
  "oracles/test_saved_dtype.py::test_transformers_rounds_no_weight_of_a_saved_model": (
    "dtype-method1-bfloat16-float32", "dtype-method3-bfloat16-bfloat16", "torch_dtype-method2-bfloat16-float32",
    "-method0-float32-float32", "-method1-bfloat16-float32",
  ),
  "oracles/test_detection_loss.py::test_the_assignment_is_scipys_and_costs_what_optaxs_does": (
    "0", "3", "6",
  ),
  "oracles/test_prompts_llama.py::test_prefix_on_other_decoders": (
    "right-gpt2", "none-opt", "right-bloom", "none-gpt_neox",
  ),
  "oracles/test_lora_conv.py::test_convolutions": (
    "1-D-pissa", "2-D-kaiming", "pointwise-pissa",
  ),
  "models/test_concrete.py::test_ids_that_are_not_embedded": (
    "roberta", "gptj", "opt", "bloom", "t5", "llama", "gemma3_text", "mixtral",
  ),
  "models/test_concrete.py::test_lengths_beyond_the_table_are_computed_or_refused": (
    "roberta", "gptj", "opt", "bloom", "clip_text_model", "t5", "llama", "gemma2",
  ),
  "models/test_published_counts.py::test_totals": (
    "llama-3.1-8b", "405b", "mixtral-8x7b", "qwen3-30b-a3b", "gemma-3-1b", "decilm-6b", "gpt-3", "t0-11b",
  ),
  "models/test_llama.py::test_chunked_loss_of_a_frozen_head_and_of_adapters_on_it": (
    "False-targets0", "True-targets1", "True-targets2",
  ),
  "models/test_published_counts.py::test_adapters": (
    "hf_config0-method0-159907840", "hf_config3-method3-614400", "hf_config6-method6-524288",
    "hf_config9-method9-50577408", "hf_config12-method12-1310720", "hf_config15-method15-102400",
    "hf_config18-method18-47185920", "hf_config21-method21-540672", "hf_config24-method24-3196928",
  ),
  "models/test_loading.py::test_peak_memory_is_little_more_than_the_model": ("shards-bfloat16", "gguf-float32"),
  "oracles/test_generate.py::test_rules_that_look_back": ("llama-all-3", "t5-all-1"),
  "oracles/test_detr.py::test_adapters_of_peft_give_equal_outputs_and_go_back": ("detr-convolutions", "yolos"),
  "oracles/test_detr.py::test_outputs_and_all_hidden_states": ("auxiliary", "learned"),
  "oracles/test_wav2vec2.py::test_outputs_and_hidden_states": ("group-False", "layer-True", "odd-True"),
  "oracles/test_bert_heads.py::test_gradients": ("RobertaForQuestionAnswering", "BertForMaskedLM"),
  "methods/test_quantized_base.py::test_reparametrisations": LINEARS,
  "methods/test_quantized_base.py::test_on_an_encoder": ("prefix",),
  "models/test_generate.py::test_every_prompt_may_name_its_adapter": ("prompt",),
  "interop/test_lm_eval.py::test_answers_are_those_of_the_harness_on_transformers": ("lora",),
  "compare/test_study.py::test_a_study_killed_and_resumed_equals_an_unbroken_one": ("deaths0-before-training",),
  "oracles/test_peft_adapters.py::test_a_peft_adapter_loads_and_saves_back_the_same_bytes": (
    "lora-patterns", "lora-layers", "lora-embedding", "ia3", "prompt", "prefix-projection", "vera", "fourierft", "dora",
    "loha", "oft", "boft", "shira", "p-tuning-lstm", "tokens", "llama-adapter", "adalora", "llama-lora",
    "output-layer", "tied-ensured", "tied-saved",
  ),
  "oracles/test_peft_adapters.py::test_our_adapter_loads_in_peft": (
    "lora-patterns", "lora-modules-to-save", "ia3", "prefix", "vera", "oft", "adalora", "p-tuning", "tokens",
    "tokens-by-the-end-of-a-name", "llama-adapter", "tied-saved-both",
  ),
  "oracles/test_peft_adapters.py::test_five_adamw_steps_give_the_same_losses": (
    "ia3", "prompt", "llama-lora", "prefix",
  ),
  "oracles/test_generation_config.py::test_what_the_file_says_is_obeyed": (
    "llama-rules", "t5-lengths", "llama-beams",
  ),
  "oracles/test_token_rows.py::test_an_adapter_of_peft_with_token_rows_loads_and_saves_back": ("tied-False",),
  "oracles/test_token_rows.py::test_our_lora_beside_token_rows_loads_in_peft": ("untied",),
  "oracles/test_token_rows.py::test_an_adapter_with_a_larger_tokenizer_resizes_the_base_as_auto_peft_does": ("untied",),
  "oracles/test_token_rows.py::test_generate_reads_by_the_tokenizer_of_the_adapter": ("tied",),
  "oracles/test_vit.py::test_outputs_and_all_hidden_states": (
    "vit", "deit-teacher", "dinov2", "registers-bare", "clip", "yolos",
  ),
  "oracles/test_vit.py::test_gradients": ("deit-teacher", "clip-projection"),
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
  "oracles/test_unet_peft.py::test_outputs_gradients_and_files_are_pefts": ("lora", "dora"),
  "oracles/test_detr.py::test_gradients": ("auxiliary",),
  "parallel/test_plan.py::test_a_slice_that_is_not_here": ("method0-most0",),
  "train/test_damaged_folders.py::test_a_checkpoint_whose_meta_is_damaged_is_set_aside": (
    "deep", "no base", "an array without fields", "another digest",
  ),
  "train/test_loop.py::test_an_evaluation_that_fails_costs_no_update": ("6",),
}  # fmt: skip


def is_quick(test: str, case: str) -> bool:
  """Whether a case of a test, by its path below `tests` and its id, always runs."""
  chosen = QUICK.get(test)
  return chosen is None or case in chosen
