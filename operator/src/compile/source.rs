//! The callers that a policy's rules name: `from`.

use weft_config::{ObjectRef, Source};
use weft_crds::policy;
use weft_crds::status::Reason;
use weft_identity::Account;

use super::diagnostic::Diagnostic;
use super::missing;
use crate::world::{Key, World};

/// The callers of a rule of a policy in the namespace `own`. Reports names that do not exist, which stay in force: the
/// account or namespace may be created later. Err: why the rule would mean something else than it says.
pub(super) fn compile(
    world: &World,
    own: &str,
    from: Option<&[policy::Source]>,
    rule: usize,
    diagnostics: &mut Vec<Diagnostic>,
) -> Result<Vec<Source>, String> {
    if from.is_some_and(<[_]>::is_empty) {
        return Err("from is empty: name callers in it, or leave it out to match everybody".to_owned());
    }
    let sources: Vec<Source> =
        from.unwrap_or_default().iter().map(|source| parse(own, source)).collect::<Result<_, _>>()?;
    for message in sources.iter().flat_map(|source| unknown(world, source)) {
        diagnostics.push(Diagnostic::unresolved(Reason::CallerNotFound, format!("rule {rule}: from: {message}")));
    }
    Ok(sources)
}

fn parse(own: &str, source: &policy::Source) -> Result<Source, String> {
    let policy::Source { service_accounts, not_service_accounts, namespaces, not_namespaces } = source;
    if *source == policy::Source::default() {
        return Err(
            "an entry of from names no caller: name some in it, or leave from out to match everybody".to_owned()
        );
    }
    let accounts = |texts: &[String]| texts.iter().map(|text| account(own, text)).collect::<Result<_, _>>();
    Ok(Source {
        service_accounts: accounts(service_accounts)?,
        not_service_accounts: accounts(not_service_accounts)?,
        namespaces: namespaces.clone(),
        not_namespaces: not_namespaces.clone(),
    })
}

/// A service account that is written as namespace/name, or as name in the namespace `own`.
fn account(own: &str, text: &str) -> Result<ObjectRef, String> {
    let (namespace, name) = text.split_once('/').unwrap_or((own, text));
    Account::new(namespace, name).map_err(|error| {
        format!(
            "from: {text:?} is no service account ({error}): write namespace/name, or name in the policy's namespace"
        )
    })?;
    Ok(ObjectRef { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// A message about each name that does not exist.
fn unknown(world: &World, source: &Source) -> Vec<String> {
    let accounts = source.service_accounts.iter().chain(&source.not_service_accounts);
    let namespaces = source.namespaces.iter().chain(&source.not_namespaces);
    let of_account = |account: &ObjectRef| missing::caller(world, &Key::new(&account.namespace, &account.name));
    accounts.filter_map(of_account).chain(namespaces.filter_map(|name| missing::namespace(world, name))).collect()
}
