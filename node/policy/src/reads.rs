//! Which attributes a policy looks at, read from its syntax tree in Cedar's JSON form.

use std::collections::BTreeSet;

use serde_json::Value;

/// The paths that the policy names in its scope and conditions, e.g. `context.model.licence`.
pub(crate) fn reads(policy: &Value) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for (scope, path) in
        [("principal", "principal.key"), ("action", "action"), ("resource", "resource.digest")]
    {
        let constraint = &policy[scope];
        // A type alone (`principal is Researcher`) looks at nobody in particular.
        if constraint["op"] != "All" && constraint["op"] != "is" {
            paths.insert(path.to_owned());
        }
    }
    for condition in policy["conditions"].as_array().into_iter().flatten() {
        collect(&condition["body"], &mut paths);
    }
    paths
}

fn collect(node: &Value, paths: &mut BTreeSet<String>) {
    if let Some(path) = path(node) {
        paths.insert(match path.as_str() {
            "principal" => "principal.key".to_owned(),
            "resource" => "resource.digest".to_owned(),
            _ => path,
        });
        return;
    }
    match node {
        Value::Object(object) => object.values().for_each(|inner| collect(inner, paths)),
        Value::Array(list) => list.iter().for_each(|inner| collect(inner, paths)),
        _ => {}
    }
}

/// The dotted path, when the node is a variable or an attribute of one.
pub(crate) fn path(node: &Value) -> Option<String> {
    let object = node.as_object()?;
    if let Some(variable) = object.get("Var") {
        return variable.as_str().map(str::to_owned);
    }
    let access = object.get(".").or_else(|| object.get("has"))?;
    Some(format!("{}.{}", path(&access["left"])?, access["attr"].as_str()?))
}
