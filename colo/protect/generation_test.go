package protect

import "testing"

// The generation that a host knows of never becomes an earlier one: an answer about an earlier one
// may come late.
func TestAGenerationThatIsLearntLateDoesNotCount(t *testing.T) {
	j := &Job{}
	j.learn(4)
	if j.learn(3); j.generation != 4 {
		t.Errorf("generation %d", j.generation)
	}
}
