//! Policies of the datasets that are made here.

/// For research only, each job decided by the dataset's steward, nothing once withdrawn.
pub const STEWARD_DECIDES: &str = r#"@id("in-general")
permit (principal, action, resource);

@id("research-only")
@reason("The notes are for research")
@change("state the purpose research, if that is what it is for")
forbid (principal, action, resource)
unless { context.purpose == "research" };

@id("steward-decides")
@reason("The steward looks at each job on these notes")
@obligation("approve:data-steward")
forbid (principal, action == Action::"finetune", resource)
when { context.stage == Stage::"run" }
unless { context.approvals.given.contains("approve:data-steward") };

@id("withdrawn")
@reason("The notes have been withdrawn")
@change("use another dataset, or a later version if the steward publishes one")
forbid (principal, action, resource)
when { resource.withdrawn };
"#;

/// For research, without a person's decision: for runs that are about something else.
pub const RESEARCH: &str = r#"@id("in-general")
permit (principal, action, resource);

@id("research-only")
@reason("The notes are for research")
@change("state the purpose research, if that is what it is for")
forbid (principal, action, resource)
unless { context.purpose == "research" };

@id("withdrawn")
@reason("The notes have been withdrawn")
@change("use another dataset, or a later version if the steward publishes one")
forbid (principal, action, resource)
when { resource.withdrawn };
"#;
