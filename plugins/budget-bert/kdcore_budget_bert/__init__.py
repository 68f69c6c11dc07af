"""academic-budget-bert's encoder for kdcore; importing this package registers it with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from kdcore_budget_bert.modeling_budget_bert import (
    BudgetBertConfig,
    BudgetBertForMaskedLM,
    BudgetBertForSequenceClassification,
    BudgetBertModel,
)

__all__ = ["BudgetBertConfig", "BudgetBertForMaskedLM", "BudgetBertForSequenceClassification", "BudgetBertModel"]

AutoConfig.register(BudgetBertConfig.model_type, BudgetBertConfig)
AutoModel.register(BudgetBertConfig, BudgetBertModel)
AutoModelForMaskedLM.register(BudgetBertConfig, BudgetBertForMaskedLM)
AutoModelForSequenceClassification.register(BudgetBertConfig, BudgetBertForSequenceClassification)
