// The Gateway API's conformance suite, unmodified. e2e/tests/conformance.rs runs it.
package conformance

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) { conformance.RunConformance(t) }
