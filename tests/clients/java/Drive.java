import java.time.LocalDate;
import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.api.AuthApi;
import org.openapitools.client.api.OperationsApi;
import org.openapitools.client.api.PatientsApi;
import org.openapitools.client.model.*;

/** Logs in, registers a patient and reads it, by the client that openapi-generator has made of the description. */
public class Drive {
    private static ApiClient client(String token) {
        ApiClient client = new ApiClient();
        client.updateBaseUri(System.getenv("HYGEIA_URL"));
        if (token != null) {
            client.setRequestInterceptor(request -> request.header("Authorization", "Bearer " + token));
        }
        return client;
    }

    private static void check(boolean holds, Object seen) {
        if (!holds) {
            throw new IllegalStateException(String.valueOf(seen));
        }
    }

    public static void main(String[] none) throws ApiException {
        AuthApi stranger = new AuthApi(client(null));
        Login login = new Login().email(System.getenv("HYGEIA_USER")).password(System.getenv("HYGEIA_PASSWORD"));
        Token first = stranger.login(login);
        Token tokens = stranger.refresh(new Refresh().refreshToken(first.getRefreshToken()));

        PatientsApi patients = new PatientsApi(client(tokens.getToken()));
        LocalDate born = LocalDate.of(1985, 6, 15);
        PatientForm form = new PatientForm().name("Jay Java").email("jay@clients.example").address("1 Bean Road")
                .dateOfBirth(born).registeredDate(LocalDate.of(2024, 1, 10));
        Patient made = patients.registerPatient(form, null);
        check(made.getVersion() == 1 && made.getDateOfBirth().equals(born), made);
        Patient seen = patients.getPatient(made.getId(), null, null, null, null).getPatient();
        check(seen.equals(made), seen);
        try {
            patients.registerPatient(form, null);
            check(false, "the address is taken");
        } catch (ApiException refused) {
            check(refused.getCode() == 409, refused);
        }
        check(new OperationsApi(client(tokens.getToken())).clusterStatus().getNodes().get(0).getRoles()
                .contains(NodeRole.FRONT), "the node is a front");
        System.out.println("a client in Java has logged in, registered and read");
    }
}
