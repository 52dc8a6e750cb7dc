//! Metadata as the API server sends it.

use kube::api::ObjectMeta;

use super::key::Key;

pub(super) fn key(metadata: &ObjectMeta) -> Key {
    Key::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

pub(super) fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

pub(super) fn revision(version: Option<&str>) -> u64 {
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// Makes a `Raw…` type with the field `metadata` a resource of the same kind as a type of Kubernetes.
macro_rules! resource {
    ($raw:ty, $as:ty) => {
        resource!($raw, $as, <$as as kube::Resource>::Scope);
    };
    ($raw:ty, $as:ty, $scope:ty $(, $generic:ident)?) => {
        impl$(<$generic: kube::Resource<DynamicType = ()>>)? kube::Resource for $raw {
            type DynamicType = ();
            type Scope = $scope;
            fn kind(_: &()) -> std::borrow::Cow<'_, str> {
                <$as as kube::Resource>::kind(&())
            }
            fn group(_: &()) -> std::borrow::Cow<'_, str> {
                <$as as kube::Resource>::group(&())
            }
            fn version(_: &()) -> std::borrow::Cow<'_, str> {
                <$as as kube::Resource>::version(&())
            }
            fn plural(_: &()) -> std::borrow::Cow<'_, str> {
                <$as as kube::Resource>::plural(&())
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

pub(super) use resource;
